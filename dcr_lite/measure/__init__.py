"""Measures one model: refusal judge, refusal rates with intervals, general ability.

May import: data, model.
"""
