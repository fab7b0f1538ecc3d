"""A run of a recipe: its steps, its folder, its plan, its report.

May import: data, model, measure, method.
"""
