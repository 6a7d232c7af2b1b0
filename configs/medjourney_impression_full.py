"""python -m progemu_jax.main --config=configs/medjourney_impression_full.py --workdir=runs/medjourney-impression-full \
    --config.data.source=mimic_cxr --config.data.root=DIR --config.autoencoder.weights=SD \
    --config.diffusion.weights=SD --config.text_encoder.weights=BIOMEDCLIP

MedJourney with the follow-up's impression as the prompt, in place of the progression description.
At 256 x 256. Not run: no weights of Stable Diffusion were reachable, and no GPU; no time or score is known.
"""

from progemu_jax.configs.diffusion import full


def get_config():
    """See the module."""
    return full("medjourney-impression")
