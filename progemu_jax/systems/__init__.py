"""The systems that a run can train: ProgEmu and latent diffusion."""
