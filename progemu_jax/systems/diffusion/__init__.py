"""A latent diffusion model's stages."""
