"""To look at: HTML, pictures, tables.  No torch, no device.

accuracies  the accuracies of the very sets shown
charts      histograms, t-SNE and scales as numbers
classes     one class: pictures, sources, clusters, scores
drawing     heat maps, boxes, sheets, small pictures
opening     which run and sets belong together; cost and settings
page        the HTML files
text        tables, data sets and images in words, for a terminal
"""
