"""Judges of refusals behind one interface, so that no number rests on a single one: interface.py says what a judge is,
opening.py opens one by its name, agreement.py says how far two agree.

May import: data, model, measure.
"""
