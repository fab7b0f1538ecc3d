"""Rows of data: read and checked, split into batches, fetched from public sources; the shipped ones lie in shipped/.

May import: nothing.
"""
