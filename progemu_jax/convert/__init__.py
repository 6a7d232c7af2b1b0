"""Emu3, Emu3-VisionTokenizer and ProgEmu checkpoints in, and out again: `python -m progemu_jax.convert`."""
