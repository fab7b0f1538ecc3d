"""dcr-lite diagnose: kernel similarities, layers and refusals of a finished run.

May import: data, model, measure, method, run.
"""
