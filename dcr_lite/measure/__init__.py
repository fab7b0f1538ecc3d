"""Measurement of one model: the refusal judge, rates with intervals, general ability.

May import: data, model.
"""
