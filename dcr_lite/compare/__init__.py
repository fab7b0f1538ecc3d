"""dcr-lite compare: other methods beside DCR on one recipe. A method is one file with its maths and one entry in
methods.py.

May import: data, model, measure, method, run, judges.
"""
