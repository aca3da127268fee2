"""What a diffusion prior says of an image.  Knows no run and no set.

adaptive   which images need more draws
answers    does each part of a prior answer to what it is asked?
batching   items in batches that are all alike, of one shape each: how many at once
classids   which of a class-conditional prior's classes is meant
diffusion  a prior behind four verbs: what all families share
draws      one draw at a time: keyed noise, predictions, losses
families   kinds of priors, and which models are refused
features   patches as vectors: DIFT, CLIP
fitting    a scorer for the images of a run: batches that they fill, and graphs for their sizes
folder     a model's folder: found; its words, classes and points
levels     how noisy; noise out of whatever a network predicts
maps       loss maps and gap maps of images
nats       scores with a unit, and what they can tell
parts      a model's parts: read, hashed, checked to be what they seem
patches    maps as patch scores and boxes
priors     a folder: the families of priors, one file each
suiting    what a prior wants where settings leave it open
"""
