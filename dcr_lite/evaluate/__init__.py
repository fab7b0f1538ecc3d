"""dcr-lite evaluate and dcr-lite judge: any model, or any file of answers, measured.

May import: data, model, measure, method, run, judges.
"""
