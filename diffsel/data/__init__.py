"""Images as numbered rows, classes, and pictures as networks take them.  Knows no model.

albums    pictures in memory: square, labelled, hashed; validation images
classes   class folders, names and prompt words, in an order that is data
far       data sets behind addresses, and tar shards
images    a data set as numbered rows; the only reader of pixels
notebook  facts and a few pictures as notebooks show them
pixels    any image file as upright sRGB pixels; resizing
pool      which images take part: classes by name, copies once
rows      numbered images as columns, and those that were passed over
tables    data sets of the `datasets` library: splits, columns
trees     folders of class folders; what in them is no class
views     crops, flips, shuffled tiles, CutMix and MixUp
"""
