"""dcr-lite export: merged weights, GGUF files, a page on the Hub.

May import: data, model, measure, method, run.
"""
