"""python -m progemu_jax.main --config=configs/text_only_full.py --workdir=runs/text-only-full \
    --config.data.source=mimic_cxr --config.data.root=DIR --config.autoencoder.weights=SD \
    --config.diffusion.weights=SD --config.text_encoder.weights=SD

Text-only diffusion (Stable Diffusion, RoentGen): the impression as the prompt, no prior, single images only.
At 256 x 256. Not run: no weights of Stable Diffusion were reachable, and no GPU; no time or score is known.
"""

from progemu_jax.configs.diffusion import full


def get_config():
    """See the module."""
    return full("text-only")
