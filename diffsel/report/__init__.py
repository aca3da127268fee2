"""To look at: HTML, pictures, tables.  No torch, no device.

accuracies  the accuracies of the very sets shown
charts      histograms, layouts (t-SNE, PCA) and scales as numbers
classes     one class: pictures, sources, clusters, scores
comparison  several sets side by side
drawing     heat maps, boxes, sheets, small pictures
opening     which run and sets belong together; cost and settings
page        the HTML files on a run or a set
pictures    what a class shows, as values
rendering   templates, style and script of a page
text        tables, data sets and images in words, for a terminal
"""
