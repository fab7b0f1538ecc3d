"""dcr-lite demo and dcr-lite score: the models of a run in the browser and in the terminal.
texts.py holds every text of the page, page.css its style.

May import: data, model, measure, mend, method, run.
"""
