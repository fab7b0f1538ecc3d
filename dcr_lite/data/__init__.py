"""Rows of data, read, checked, split and drawn; public data sets and models, fetched; the shipped rows in shipped/.

May import: nothing.
"""
