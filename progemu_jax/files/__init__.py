"""The documented files of a run: JSON records, settings, stages, predictions. NumPy and Python alone."""
