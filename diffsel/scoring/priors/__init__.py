"""The families of priors, one file each: what scoring/diffusion.py leaves open.  A file here is found by its family's name.

dit          DiT: class-conditional, on ImageNet
pixart       PixArt Alpha and Sigma
prx          PRX
sd           Stable Diffusion 1.x and 2.x; what U-Nets share
sd3          Stable Diffusion 3 and 3.5
sdxl         Stable Diffusion XL
transformer  what transformers share
words        what text encoders make of prompts
"""
