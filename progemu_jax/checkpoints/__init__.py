"""Training checkpoints and exports."""
