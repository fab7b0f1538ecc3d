"""The paper's method: contrastive refinement and safety SFT.

May import: data, model, measure.
"""
