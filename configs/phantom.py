"""python -m progemu_jax.main --config=configs/phantom.py --workdir=runs/phantom

The demo given more patients, steps and a finer tokenizer: under three hours on 2 cores, minutes on a GPU:
`make phantom`. Measured at ed8cbb8: 84 min on 2 busy cores; no GPU has been tried. To expect on the held-out pairs:
direction 0.91, mean finding AUROC 0.89, 0.84 on findings that changed, group kept 0.92, text 0.96.
"""

from progemu_jax.configs.common import phantom


def get_config():
    """See the module."""
    config = phantom(
        name="ProgEmu on the phantom",
        patients=2400,
        tokenizer_steps=2500,
        crops=5,
        stage1_steps=150,
        stage2_steps=6600,
        scorer_images=4000,
        scorer_steps=500,
    )
    config.tokenizer.model.update(ch=64, codebook_size=1024)
    config.progemu.model.num_layers = 6
    return config
