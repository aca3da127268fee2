"""Many sets, many students: tables, figures, the demo.

agreement  how far prompts agree on a run
budgets    accuracy against compute, beside what sets cost to make and to keep
cases      a case of the paper, a scale, and the job that stands for it
checking   is a folder what it should be, and what makes a damaged file again?
demo       the embedded data set, distilled and checked
figures    t-SNE and sheets of pictures
making     sets, teachers and students of jobs, each once
matrix     a table as a product of data sets, methods, teachers, students
priors     which of two priors for these images
scenes     digits on scenes, with the true box of every object
study      the one `main` of all pipelines
tables     ours beside the paper's, as Markdown, CSV and picture
"""
