"""Trained models as users meet them."""
