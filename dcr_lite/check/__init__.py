"""dcr-lite check: what a run will meet on this machine, found in about two minutes. Each part is a module with a
function ``look``; worker.py runs them one after the other in a process of their own.

May import: data, model, measure, method, run.
"""
