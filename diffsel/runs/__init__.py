"""RUN, the stored pass: read, and worked on.

forecast   what a pass will cost here, told before it begins
index      the images of a run, one line each; what was passed over
knowledge  what a prior knows of some images: nats, calibration
parts      what is stored beside a pass: maps of other prompts, and of rivals
probe      does a prior know the classes?
prompts    other prompts on a stored run
record     what a run was made with: run.yaml
rivals     other labels that an image may be taken for, on a stored run
run        a run that is read: maps, boxes, vectors; no torch, no device
session    a run that is worked on: opening, model, units that are left
units      a unit of work: at most 256 images of one class; is a file that unit's?
writing    what a stage makes of a unit -> its file
"""
