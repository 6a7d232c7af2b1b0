"""Diffusers checkpoints."""
