"""python -m progemu_jax.main --config=configs/instructpix2pix_full.py --workdir=runs/instructpix2pix-full \
    --config.data.source=mimic_cxr --config.data.root=DIR --config.autoencoder.weights=SD \
    --config.diffusion.weights=SD --config.text_encoder.weights=SD

InstructPix2Pix: the description as the prompt, pairs only, no stage of single images.
At 256 x 256. Not run: no weights of Stable Diffusion were reachable, and no GPU; no time or score is known.
"""

from progemu_jax.configs.diffusion import full


def get_config():
    """See the module."""
    return full("instructpix2pix")
