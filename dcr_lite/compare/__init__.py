"""dcr-lite compare: other methods beside DCR on one recipe. A method is one file with its maths and one entry in
methods.py. A comparison by a frozen contract writes a submission, which dcr-lite verify checks.

May import: data, model, measure, method, run, judges.
"""
