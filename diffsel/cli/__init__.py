"""Verbs only: parse, call one library function, print.

app         the program, and `demo`
evaluation  teacher, relabel, evaluate, experiment
flags       settings as flags; the closing summary
looking     inspect, probe, trace, check, report, suspects, prompts, export
making      score, embed, select, distill
"""
