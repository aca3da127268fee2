"""What a set is worth: teachers, students, labels, accuracies.  Knows no diffusion and no run.

batches      what a student sees in each epoch, labelled as it comes
bench        what cells share: the device, teachers, pictures
cells        every cell of a table once
checkpoints  trained weights as they lie on disk or on the hub
cutting      images as a teacher's training sees them
fixed        one soft label an image; which kind of labels a student learns from
judging      what baselines ask of a teacher: RDED's judge, the records of its training
networks     ConvNets, torchvision's networks, timm's
protocols    a protocol made definite: RDED's tables and formulas
results      what students achieved: results, intervals, lines of a table; no torch
seeing       a teacher's view of a set: its features, RDED's realism score
storing      labels stored once for all students, and batches made of them
students     one student, one seed, one accuracy
tasks        what `teacher`, `relabel` and `evaluate` do, as functions
teachers     trained networks that label images; are their classes ours?
teaching     training a teacher
"""
