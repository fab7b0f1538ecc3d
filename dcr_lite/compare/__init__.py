"""dcr-lite compare: other methods beside DCR on one recipe.

May import: data, model, measure, method, run.
"""
