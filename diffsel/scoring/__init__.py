"""What a diffusion prior says of an image.  Knows no run and no set.

adaptive   which images need more draws
diffusion  a prior behind four verbs: what all families share
draws      one draw at a time: keyed noise, predictions, losses
features   patches as vectors: DIFT, CLIP
folder     a model's folder: found, and checked to be what it seems
levels     how noisy; noise out of whatever a network predicts
maps       loss maps and gap maps of images
nats       scores with a unit, and what they can tell
patches    maps as patch scores and boxes
priors     a folder: the families of priors, one file each
"""
