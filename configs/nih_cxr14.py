"""python -m progemu_jax.main --config=configs/nih_cxr14.py --config.data.root=DIR --workdir=runs/nih

Every stage on NIH ChestX-ray14 (`Data_Entry_2017*.csv`, `images/`), at 128 x 128, sized for a few hundred films: 19 min
on 2 cores with AVX-512 for 489 films of 342 patients. They teach no model to edit; what is shown is that the chain
takes a cohort of labels, how well the tokenizer rebuilds held-out patients (to expect: SSIM 0.89, 30 dB; with the prior
0.90, 32 dB), and what its scorer and its re-identification reach (AUROC 0.98). For the whole collection (112,120 films)
see docs/scaling.md.
"""

from progemu_jax.configs import open_cxr


def get_config():
    """See the module."""
    config = open_cxr.get_config()
    config.name = "NIH ChestX-ray14: every stage on films with labels alone"
    config.data.update(source="nih_cxr14", no_change_share=0.5, tree_size=256)
    config.data.journeys.update(views=("PA", "AP"), split="hash")
    del config.data.journeys.duplicates
    config.tokenizer.train.update(steps=2000, eval_every=1000)
    config.decoder.train.steps = 300
    config.progemu.words.steps = config.progemu.stage1.steps = 50
    config.progemu.stage2.update(steps=700, eval_every=350)
    train = {**config.decoder.train, "batch_size": 32, "eval_every": 100}
    config.scorer = {"train": train}
    config.identity = {"train": {**train, "warmup_steps": 20}}
    config.sample.policy.max_text = 96
    config.evaluate.caveats = (
        "A few hundred films: no quality bar for the edits. Labels were mined from reports by NIH and are right in "
        "about 90 %.",
    )
    return config
