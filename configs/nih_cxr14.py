"""python -m progemu_jax.main --config=configs/nih_cxr14.py --config.data.root=DIR --workdir=runs/nih

Every stage on NIH ChestX-ray14 (`Data_Entry_2017*.csv`, `images/`), at 128 x 128, sized for a few hundred films: 19 min
on 2 cores with AVX-512 for 489 films of 342 patients. They teach no model to edit; what is shown is that the chain
takes a cohort of labels, how well the tokenizer rebuilds held-out patients (to expect: SSIM 0.89, 30 dB; with the prior
0.90, 32 dB), and what its scorer and its re-identification reach (AUROC 0.98). For the whole collection (112,120 films)
see docs/scaling.md.
"""

from ml_collections import ConfigDict

from progemu_jax.configs.common import TASK, TOKENIZER, TRANSFORMER


def get_config():
    """See the module."""
    train = {"batch_size": 8, "final_learning_rate": 5e-5, "weight_decay": 0.05, "save_every": 200}
    return ConfigDict(
        {
            "name": "NIH ChestX-ray14: every stage on films with labels alone",
            "vocabulary": "radiology",
            "data": {
                "source": "nih_cxr14",
                "root": "",
                "journeys": {
                    "pairs": "both",
                    "views": ("PA", "AP"),
                    "finding": False,
                    "split": "hash",
                    "validation": 0.15,
                    "test": 0.25,
                },
                "no_change_share": 0.5,
                "tree_size": 256,
                "image_size": 128,
            },
            "tokenizer": {
                "model": TOKENIZER,
                "train": {"steps": 2000, "learning_rate": 1e-3, "eval_every": 1000, **train},
            },
            "decoder": {"train": {"steps": 300, "learning_rate": 1e-3, **train}},
            "progemu": {
                "model": {**TRANSFORMER, "learned_positions": 768},
                "task": {**TASK, "length": 768, "prompt_budget": 64},
                "words": {"steps": 50, "learning_rate": 1e-3, "optimizer": "muon", **train},
                "stage1": {"steps": 50, "learning_rate": 1e-3, **train},
                "stage2": {"steps": 700, "learning_rate": 1e-3, "eval_every": 350, **train},
                "reading": {"train": {"steps": 30, "learning_rate": 1e-3, **train}},
            },
            "scorer": {
                "train": {
                    "steps": 300, "learning_rate": 1e-3, "eval_every": 100,
                    **train, "batch_size": 32,
                },
            },
            "identity": {
                "train": {
                    "steps": 300, "learning_rate": 1e-3, "eval_every": 100, "warmup_steps": 20,
                    **train, "batch_size": 32,
                },
            },
            "sample": {
                "batch_size": 8,
                "policy": {
                    "temperature": 0.7, "top_k": 64, "guidance": 2.0, "keep_prior": True,
                    "text_temperature": 0.0, "max_text": 96,
                },
            },
            "evaluate": {
                "caveats": (
                    "A few hundred films: no quality bar for the edits. Labels were mined from reports by NIH and are "
                    "right in about 90 %.",
                ),
            },
        }
    )  # fmt: skip
