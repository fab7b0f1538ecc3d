"""Causal language models: loaded, adapted, run in halves, decoded; what their memory takes.

May import: data.
"""
