"""dcr-lite probe: how much a model still refuses, and still tells apart, under attack: by other wordings, prefilled
answers, a conversation before, rounded and retrained weights, an ablated direction, sampling.

May import: data, model, measure, method, run, compare.
"""
