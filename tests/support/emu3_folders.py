"""Hugging Face folders of Emu3 in both dialects, with known weights."""

import json
from pathlib import Path

import numpy as np

from progemu_jax.checkpoints import safetensors
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import names as emu3_names
from progemu_jax.text.vocabulary import load
from support.emu3_reference import CODES, LM, TINY_VQ, transformers_vq, weight

VQ_CONFIG = {"model_type": "Emu3VisionVQ", **TINY_VQ}

LM_CONFIG = {"model_type": "Emu3", **LM, "attention_dropout": 0.1, "auto_map": {"AutoModel": "x.Y"}}

CONFIGS = {
    "language_model": LM_CONFIG,
    "tokenizer": VQ_CONFIG,
    "both": {
        "model_type": "emu3",
        "text_config": {"model_type": "emu3_text_model", **LM, "rope_parameters": {"rope_type": "default"}},
        "vq_config": {"model_type": "emu3_vqgan", **transformers_vq(TINY_VQ)},
    },
}


def entries_of(kind, newer=False):
    """Entries of a whole checkpoint; newer: the prefixes of later versions of transformers."""
    lm = emu3_folder.configs.language_model(Path(), LM, "float32")
    at = int(newer)
    if kind == "both":
        vq = emu3_folder.configs.tokenizer(Path(), transformers_vq(TINY_VQ), "transformers", "float32")
        prefixes = emu3_names.LANGUAGE_PREFIXES["transformers"][at]
        return [
            *emu3_folder.language_entries(lm, prefixes),
            *emu3_folder.tokenizer_entries(vq, "transformers", emu3_names.TOKENIZER_PREFIXES["transformers"][at]),
        ]
    if kind == "language_model":
        return emu3_folder.language_entries(lm, emu3_names.LANGUAGE_PREFIXES["original"][0])
    vq = emu3_folder.configs.tokenizer(Path(), TINY_VQ, "original", "float32")
    return emu3_folder.tokenizer_entries(vq, "original", "")


def checkpoint_folder(path, kind, dtype="F32", shards=1, newer=False):
    """A Hugging Face folder with known weights; norms and the code-book stay F32 whatever dtype is."""
    path.mkdir(parents=True)
    values = {}
    for entry in entries_of(kind, newer):
        wide = "norm" in entry.name or "quantize" in entry.name
        values[entry.name] = weight(entry.name, entry.tensor_shape).astype(safetensors.DTYPES["F32" if wide else dtype])
        if entry.name.endswith("running_mean"):
            values[entry.name.replace("running_mean", "num_batches_tracked")] = np.asarray(7, np.int64)
    order = sorted(values, key=lambda n: (-values[n].itemsize, n))
    heads = {n: (safetensors.NAMES[str(values[n].dtype)], values[n].shape) for n in order}
    files = {safetensors.WEIGHTS: heads}
    if shards > 1:
        files = {f"part-{i}.safetensors": {n: heads[n] for n in order[i::shards]} for i in range(shards)}
    writer = safetensors.Writer(path, files)
    for name, value in values.items():
        writer.write(name, value)
    writer.close()
    (path / "config.json").write_text(json.dumps(CONFIGS[kind]))
    if kind != "tokenizer":
        load(None, CODES).save(path)
    if kind != "language_model":
        (path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 256, "max_pixels": 4096}))
    (path / "modeling.py").write_text("raise SystemExit('executed')")
    return path
