"""What a diffusion prior says of an image.  Knows no run and no set.

adaptive   which images need more draws
diffusion  Stable Diffusion behind four verbs; diffusers
draws      one draw at a time: keyed noise, predictions, losses
features   patches as vectors: DIFT, CLIP
folder     a model's folder: found, and checked to be what it seems
maps       loss maps and gap maps of images
nats       scores with a unit, and what they can tell
patches    maps as patch scores and boxes
"""
