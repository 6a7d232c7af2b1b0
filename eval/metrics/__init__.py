"""Metrics as pure NumPy functions: each file states formula, source and what is undefined."""
