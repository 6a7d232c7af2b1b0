"""Scorers: images -> pathology, group, age, sex and organ masks. They judge; they never enter a loss."""
