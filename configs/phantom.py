"""python -m progemu_jax.main --config=configs/phantom.py --workdir=runs/phantom

The demo given more patients, steps and a finer tokenizer: `make phantom`, about an hour on 2 cores with AVX-512 by the
speed of the demo's steps, minutes on a GPU; neither was measured with these settings. Before them (ed8cbb8, 84 min on 2
busy cores): direction 0.91, mean finding AUROC 0.89, 0.84 on findings that changed, group kept 0.92, text 0.96.
"""

from progemu_jax.configs.common import phantom


def get_config():
    """See the module."""
    config = phantom(
        name="ProgEmu on the phantom",
        patients=2400,
        tokenizer_steps=600,
        crops=4,
        stage1_steps=150,
        stage2_steps=9000,
        scorer_images=4000,
        scorer_steps=500,
        words_steps=600,
        decoder_steps=1000,
    )
    config.progemu.model.num_layers = 6
    config.progemu.task.empty_prompt = 0.25  # rows that teach to read the images
    config.progemu.task.omitted_weight = 1.0
    config.tokens.slack = 1.5  # graded changes are small
    return config
