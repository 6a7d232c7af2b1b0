"""Emu3 and ProgEmu checkpoints."""
