"""The families of priors, one file each: what scoring/diffusion.py leaves open.  A file here is found by its family's name.

sd  Stable Diffusion 1.x and 2.x
"""
