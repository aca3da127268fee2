"""Verbs only: parse, call one library function, print.

app         the program, and `demo`
evaluation  teacher, relabel, evaluate, experiment
flags       settings as flags; the closing summary
handing     export, rebuild, apply
layout      how help looks; --verbose
looking     inspect, probe, trace, check, report, suspects, prompts
making      score, embed, select, distill
"""
