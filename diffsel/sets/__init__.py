"""RUN -> SET -> other forms.

assembly    picks as pictures and mosaics, with their provenance
baselines   random images, RDED and the hard or easy ones, through the same assembly
candidates  what selection may choose from; what decides a set
card        README.md of a set and of its exports
coresets    which vectors stand for the others: herding, k-centre, medoids
difficulty  which images a teacher found hard while it learned: EL2N, forgetting, CCS
export      a set in the forms that other tools read; the hub
exported    a folder for other tools: written at once, still whole?
figures     figures of a set itself: coverage, diversity, realism
handover    the scores of a run in the forms that other tools read
lists       a set made again of its list, or its sources alone
opening     the one reader of a set
record      what a set says of itself, checked as it is read
scores      what a run says of every image
selection   clusters, ranks and picks
suspects    images whose label raises the loss
usable      images that a baseline may take, and what was seen of them
"""
