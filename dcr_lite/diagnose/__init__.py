"""dcr-lite diagnose: layers, couplings and prompts of a finished run.

May import: data, model, measure, method, run.
"""
