"""dcr-lite mend: a chat model that refuses what it should answer, trained on the prompts that its user names.

May import: data, model, measure, method, run.
"""
