"""python -m progemu_jax.main --config=configs/demo.py --workdir=runs/demo

The whole way on the built-in phantom: `make demo`, 12 minutes on 2 cores with AVX-512, about twice that on older ones.
To expect on the held-out pairs: direction 0.80, mean finding AUROC 0.84, 0.62 on findings that changed, group kept
0.91.
"""

from progemu_jax.configs.common import phantom


def get_config():
    """See the module."""
    return phantom(
        name="ProgEmu on the phantom: demo",
        patients=500,
        tokenizer_steps=400,
        crops=3,
        stage1_steps=50,
        stage2_steps=1300,
        scorer_images=3000,
        scorer_steps=250,
    )
