"""dcr-lite demo and dcr-lite score: the models of a run in the browser and in the terminal.

May import: data, model, measure, method, run.
"""
