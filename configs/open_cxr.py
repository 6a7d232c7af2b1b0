"""python -m progemu_jax.main --config=configs/open_cxr.py --config.data.root=DIR --workdir=runs/open

Every stage on the public COVID-19 Image Data Collection (`metadata.csv` + `images/`), in at most 20 minutes on 2
cores. A hundred images teach no model to edit: the run shows that the chain takes real radiographs, and how well the
tokenizer rebuilds those of held-out patients. Measured at ffe8fca: 6 min 27 s on 2 cores; to expect, in the row of
the reconstructed follow-up, SSIM 0.78 and PSNR 26.2 dB.
"""

from ml_collections import ConfigDict

from progemu_jax.configs.common import TASK, TOKENIZER, TRANSFORMER


def get_config():
    """See the module."""
    train = {"batch_size": 8, "final_learning_rate": 5e-5, "weight_decay": 0.05, "save_every": 200}
    return ConfigDict(
        {
            "name": "Open collection: every stage on real radiographs",
            "vocabulary": "radiology",
            "data": {
                "source": "open_cxr",
                "root": "",
                # Mostly AP films of patients in bed: all frontal views count as one.
                "journeys": {
                    "pairs": "both",
                    "views": ("PA+AP+AP Supine",),
                    "finding": False,
                    "validation": 0.15,
                    "test": 0.25,
                    "duplicates": True,  # patients 97 and 178 are one
                },
                "tree_size": 512,
                "image_size": 128,
            },
            "tokenizer": {
                "model": TOKENIZER,
                "train": {"steps": 800, "learning_rate": 1e-3, "eval_every": 400, **train},
            },
            "decoder": {"train": {"steps": 100, "learning_rate": 1e-3, **train}},
            "progemu": {
                "model": {**TRANSFORMER, "learned_positions": 768},
                "task": {**TASK, "length": 768, "prompt_budget": 64},
                "words": {"steps": 30, "learning_rate": 1e-3, "optimizer": "muon", **train},
                "stage1": {"steps": 30, "learning_rate": 1e-3, **train},
                "stage2": {"steps": 60, "learning_rate": 1e-3, "eval_every": 60, **train},
                "reading": {"train": {"steps": 30, "learning_rate": 1e-3, **train}},
            },
            "sample": {
                "batch_size": 8,
                "policy": {
                    "temperature": 0.7, "top_k": 64, "guidance": 2.0, "keep_prior": True,
                    "text_temperature": 0.0, "max_text": 60,
                },
            },
            "evaluate": {
                "caveats": (
                    "A hundred real images of 34 patients: no quality bar for the edits; what is shown is that the "
                    "whole chain runs on real radiographs, and how well the tokenizer rebuilds those of held-out "
                    "patients: SSIM and PSNR in the row of the reconstructed follow-up.",
                    "No pathology, group or age scores: the phantom's scorers refuse other images.",
                )
            },
        }
    )  # fmt: skip
