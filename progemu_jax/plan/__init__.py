"""What fits where: `--stages=plan`."""
