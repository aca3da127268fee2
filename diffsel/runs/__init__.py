"""RUN, the stored pass: read, and worked on.

forecast  what a pass will cost here, told before it begins
prompts   other prompts on a stored run
run       a run that is read: maps, boxes, vectors; no torch, no device
session   a run that is worked on: opening, model, units that are left
"""
