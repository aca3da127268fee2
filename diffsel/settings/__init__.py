"""What may be asked for, and every error that a user may meet.  Imports no other room.

errors    every foreseeable error, with its message
presets   settings files that come with diffsel, by name
sections  the sections of the settings, one class each
settings  all sections together, from flags and YAML files; what of them decides results
training  the sections about networks: teachers and students
yamls     YAML files as plain values
"""
