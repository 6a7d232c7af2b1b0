"""Which tensor of a checkpoint is which of our parameters, and how it is laid out there.

Our names are dotted paths ("layers_3.self_attn.q_proj", "params.encoder.down_0.block_1.conv1.kernel"). Checkpoints come
in two dialects: "original" (Emu3's and ProgEmu's own repositories) and "transformers" (the library of that name), the
latter with prefixes that changed between versions. What Emu3 has not, the head of anti-diagonal decoding, has a file of
its own that no index names.
"""

from __future__ import annotations

import re

from progemu_jax.convert.components import Entry
from progemu_jax.models import diagonal_head

# (prefix of the layers and embeddings, prefix of the head); the first of a dialect is the one we write.
LANGUAGE_PREFIXES = {
    "original": (("model.", ""),),
    "transformers": (("text_model.model.", "text_model."), ("model.text_model.", "")),
}
HEAD_FILE = f"{diagonal_head.NAME}.safetensors"
TOKENIZER_PREFIXES = {"original": ("",), "transformers": ("vqmodel.", "model.vqmodel.", "")}


def language_entries(shapes: dict[str, tuple[int, ...]], prefix: str, head_prefix: str) -> list[Entry]:
    """Entries of the transformer's parameters, {leaf: shape} with per-layer subtrees."""
    entries = []
    for leaf, shape in shapes.items():
        if leaf == "lm_head":
            name = f"{head_prefix}lm_head.weight"
        else:
            path = re.sub(r"^layers_(\d+)", r"layers.\1", leaf.removesuffix(".scale"))
            name = f"{'' if of_diagonal_head(leaf) else prefix}{path}.weight"
        table = leaf in ("embed_tokens", "lm_head") or leaf.endswith(".scale")
        entries.append(Entry(leaf, shape, name, "same" if table else "linear"))
    return entries


def of_diagonal_head(leaf: str) -> bool:
    """Whether a parameter lies in `HEAD_FILE`."""
    return leaf.startswith(f"{diagonal_head.NAME}.")


_LAST = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "proj_out": "out_proj"}


def tokenizer_entries(shapes: dict[str, tuple[int, ...]], dialect: str, prefix: str) -> list[Entry]:
    """Entries of the VQGAN's variables, {leaf: shape}; leaves begin with "params." or "batch_stats."."""
    entries = []
    for leaf, shape in shapes.items():
        *parts, last = leaf.split(".")[1:]
        if last == "embedding":
            entries.append(Entry(leaf, shape, f"{prefix}quantize.embedding.weight", "same"))
            continue
        # The temporal path's convolutions are a padded convolution inside another module.
        wrapped = parts[0].endswith("quant_conv") or any(p.startswith("time_") for p in parts)
        if (wrapped and len(shape) != 1) or (wrapped and last == "bias" and "norm" not in parts[-1]):
            parts += ["conv", "conv"] if parts[-1].startswith("time_conv") else ["conv"]
        name = ".".join((*parts, _LAST.get(last, last)))
        name = re.sub(r"\b(down|up|time_conv|time_res_stack)_(\d+)", r"\1.\2", name)
        name = re.sub(r"(\b(?:down|up)\.\d+)\.(block|attn)_(\d+)", r"\1.\2.\3", name)
        layout = "conv" if last == "kernel" else "same"
        if dialect == "transformers":
            if re.search(r"\battn[._]\d+\.(q|k|v|proj_out)\.", name):
                layout = "point" if last == "kernel" else layout
                name = re.sub(r"(\battn[._]\d+)\.(\w+)\.", lambda m: f"{m[1]}.{_ATTENTION[m[2]]}.", name)
            name = re.sub(r"\battn\.(\d+)\.norm\.", r"attn_norms.\1.", name)
            name = re.sub(r"\bmid\.attn_1\.norm\.", "mid.attn_norm.", name)
            name = re.sub(r"\bmid\.", "middle_block.", name)
            name = re.sub(r"^(encoder|decoder)\.(down|up)\.", r"\1.\2_block.\2.", name)
        entries.append(Entry(leaf, shape, prefix + name, layout))
    return entries
