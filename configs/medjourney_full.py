"""python -m progemu_jax.main --config=configs/medjourney_full.py --workdir=runs/medjourney-full \
    --config.data.source=mimic_cxr --config.data.root=DIR --config.autoencoder.weights=SD \
    --config.diffusion.weights=SD --config.text_encoder.weights=BIOMEDCLIP

MedJourney at the paper's size: Stable Diffusion 1.x's UNet and autoencoder, BiomedCLIP's text encoder, 256 x 256.
Steps follow the paper's batch of 32; its number of updates is not printed. Not run: no weights of Stable Diffusion
were reachable, and no GPU; no time or score is known.
"""

from progemu_jax.configs.diffusion import full


def get_config():
    """See the module."""
    return full("medjourney")
