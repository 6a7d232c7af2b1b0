"""Small Emu3 checkpoints with known weights, and what PyTorch makes of them.

    .venv-parity/bin/python tests/support/emu3_reference.py --emu3=DIR      # writes tests/golden/emu3_outputs.npz

DIR is a checkout of the public Emu3 code (github.com/baaivision/Emu3): its VisionVQ, image processor and text
tokenizer are the reference of the original dialect. The library `transformers` is that of the other, and of the
language model, whose original class no longer imports under it. Nothing of theirs is stored but numbers and names.

Weights are drawn by tensor name from raw generator bits, so that both sides make the same ones without a file. None
is at its initial value: norms, BatchNorm's statistics and biases are random, the code-book is N(0, 1).
"""

import argparse
import json
import math
import re
import sys
import types
import zlib
from pathlib import Path

import numpy as np

OUTPUTS = Path(__file__).parents[1] / "golden/emu3_outputs.npz"
CODES = 64
FULL_VQ = {"ch": 32, "ch_mult": [1, 2, 2, 4], "num_res_blocks": 2, "attn_resolutions": [3], "codebook_size": CODES}
TINY_VQ = FULL_VQ | {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [1]}
LM = {
    "vocab_size": 1088,  # the built-in vocabulary with 64 codes
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 813,
    "bos_token_id": 1019,
    "eos_token_id": 1020,
}
PROCESSOR = {"min_pixels": 24 * 24, "max_pixels": 40 * 40}
SIZES = ((24, 24), (37, 29), (19, 51), (64, 48), (25, 33), (40, 40), (23, 23), (31, 61), (80, 44), (27, 47))
GRID = (4, 8)  # 4 rows of 8 codes and EOL, EOF, EOI: 38 tokens; with 26 of text, 64
TEXT_TOKENS = 26
PROMPT = "New small left pleural effusion."
# What the original text tokenizer is asked, with 151,643 ranks of `many_ranks`.
TEXTS = (
    "", " ", "New small left pleural effusion.", "64*64", "2.5 cm nodule, 1,234 HU at 07:45",
    "e\u0301dema — naïve ≥ 3 ×\n\n  tail  ", "胸部X線で左胸水が増加。",
    "\U0001fac1\U0001f1e9\U0001f1ea 👩\u200d⚕\ufe0f",
    "\x00\x07\ufeff\u200b", "It's the patient's. THEY'LL\r\nreturn", "A\u030a \u212b ﬁ ½ ²", "\t\t x  \n y",
    "<|extra_203|><|image start|>64*64<|image token|><|visual token 000000|><|visual token 032767|><|extra_200|>",
    "a<|endoftext|>b<|im_start|>c<|", "<|visual token 032768|>", "<|<|extra_0|>|>", "lone \ud83d surrogate",
)  # fmt: skip
# Ids whose bytes are not UTF-8.
BROKEN = ([0xE2], [0xE2, 0x82], [0xFF, 0x41], [0xE2, 151_849, 0x82, 0xAC], [0xF0, 0x9F, 0xAB, 0x81])


def write_run(folder: Path, model, vocabulary, layout: dict, policy: dict) -> None:
    """The exports of a run directory, of a loaded model with both parts."""
    from progemu_jax.checkpoints import export
    from progemu_jax.files.settings import to_dict

    config = {
        "model": to_dict(model.config),
        "layout": layout,
        "policy": policy,
        "vocabulary": "",
        "vocabulary_hash": vocabulary.hash,
        "hash": "0" * 12,
    }
    export.export(model.params, config, folder / "train/export")
    vq = {"model": to_dict(model.tokenizer.config)}
    export.export(model.tokenizer.variables, vq, folder / "tokenizer/export")


def uniform(name: str, shape) -> np.ndarray:
    """float64 in [0, 1), the same everywhere for a name and shape."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((np.asarray(raw, np.uint64) >> np.uint64(11)) * 2.0**-53).reshape(shape)


def weight(name: str, shape) -> np.ndarray:
    """The tensor of a name in the checkpoint's own layout, float32 (int64 for a counter).

    The prefixes of the transformers dialect, which differ between its files and its modules, do not count.
    """
    name = re.sub(r"^(text_model\.model\.|model\.text_model\.)", "model.", name)
    name = re.sub(r"^(model\.)?vqmodel\.|^text_model\.(?=lm_head)", "", name)
    u = uniform(name, shape)
    if name.endswith("num_batches_tracked"):
        return np.full(shape, 7, np.int64)
    if name.endswith("quantize.embedding.weight"):
        other = uniform(f"{name}/2", shape)
        return (np.sqrt(-2 * np.log(1 - u)) * np.cos(2 * np.pi * other)).astype(np.float32)
    if name.endswith(("running_var",)) or ("norm" in name and name.endswith("weight") and len(shape) == 1):
        return (0.5 + u).astype(np.float32)
    if len(shape) == 1:
        return (0.4 * u - 0.2).astype(np.float32)
    if name.endswith("embed_tokens.weight"):
        return (2 * u - 1).astype(np.float32)
    bound = math.sqrt(3 / math.prod(shape[1:]))
    # Gains that keep logits, latents and pixels spread: many tokens and codes in use, few pixels clipped.
    gains = {
        "lm_head": 3,
        "time_": 2,
        "encoder.conv_out": 3,
        "decoder.conv_out": 0.4,
        "quant_conv": 1 if "post" in name else 4,
    }
    gain = next((g for mark, g in gains.items() if mark in name), 1)
    return ((2 * u - 1) * bound * gain).astype(np.float32)


def pictures(size: tuple[int, int], count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, H, W, 3]: coloured noise on smooth ramps."""
    h, w = size
    noise = uniform(f"image {size} {seed}", (count, h, w, 3))
    tint = uniform(f"tint {size} {seed}", (count, 3, 3))
    y, x = np.mgrid[:h, :w] / max(h, w)
    ramps = tint[:, None, None, 0] * y[..., None] + tint[:, None, None, 1] * x[..., None] + tint[:, None, None, 2]
    return np.clip(255 * (ramps / 2 + 0.3 * noise - 0.1), 0, 255).astype(np.uint8)


def some_codes(count: int, shape: tuple[int, int]) -> np.ndarray:
    return (uniform(f"codes {shape}", (count, *shape)) * CODES).astype(np.int32)


def some_tokens(count: int, length: int) -> np.ndarray:
    return (uniform("tokens", (count, length)) * LM["vocab_size"]).astype(np.int32)


def many_ranks() -> dict[bytes, int]:
    """151,643 text tokens, Emu3's number: the built-in ones, then words of three bytes that never merge."""
    import itertools

    from progemu_jax.text.vocabulary import (
        BUILT_IN,
        TEXT_FILE,
        read_ranks,
    )

    ranks = read_ranks(BUILT_IN / TEXT_FILE)
    for triple in itertools.product(range(256), repeat=3):
        if len(ranks) == 151_643:
            return ranks
        ranks.setdefault(bytes(triple), len(ranks))
    raise AssertionError


def transformers_vq(vq: dict) -> dict:
    """A VisionVQ config in the words of transformers."""
    return {
        "base_channels": vq["ch"],
        "channel_multiplier": vq["ch_mult"],
        "num_res_blocks": vq["num_res_blocks"],
        "attn_resolutions": vq["attn_resolutions"],
        "codebook_size": vq["codebook_size"],
        "hidden_size": vq["ch"] * vq["ch_mult"][-1],
    }


# --- with torch from here on ---


def fill(model):
    """Gives every tensor of a torch model its known value."""
    import torch

    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
    return model.eval()


def torch_full(vq: dict, **lm):
    """Emu3ForConditionalGeneration with known weights."""
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAEConfig

    config = Emu3Config(
        vq_config=Emu3VQVAEConfig(**transformers_vq(vq)),
        text_config=Emu3TextConfig(**(LM | lm)),
        vocabulary_map=token_map(),
    )
    return fill(Emu3ForConditionalGeneration(config))


def token_map() -> dict[str, int]:
    """Names of all that is no text; "<image>", where transformers puts the tokens of an image, is extra 0."""
    from progemu_jax.text.vocabulary import (
        load,
    )

    v = load(None, CODES)
    names = {v.decode([i]): i for i in range(v.text_size, v.size)}
    return names | {"<image>": names["<|extra_0|>"]}


def torch_lm(**lm):
    """Emu3ForCausalLM, whose tensors have the original dialect's names."""
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    return fill(Emu3ForCausalLM(Emu3TextConfig(**(LM | lm))))


def original(emu3: str, module: str):
    """A module of the public Emu3 code, without its packages' own imports."""
    import importlib

    for name in ("emu3", "emu3.tokenizer", "emu3.mllm"):
        if name not in sys.modules:
            package = types.ModuleType(name)
            package.__path__ = [str(Path(emu3, *name.split(".")))]
            sys.modules[name] = package
    return importlib.import_module(module)


def original_vq(emu3: str, vq: dict):
    """The public Emu3VisionVQModel with known weights."""
    module = original(emu3, "emu3.tokenizer.modeling_emu3visionvq")
    return fill(module.Emu3VisionVQModel(module.Emu3VisionVQConfig(**vq)))


def original_text_tokenizer(emu3: str, folder: Path):
    from progemu_jax.text.vocabulary import (
        TEXT_FILE,
        VISION_FILE,
    )

    module = original(emu3, "emu3.mllm.tokenization_emu3")
    return module.Emu3Tokenizer(str(folder / TEXT_FILE), str(folder / VISION_FILE))


def greedy(model, prompt: np.ndarray, vocabulary, count: int) -> np.ndarray:
    """Greedy tokens of a torch language model under the grammar, whose EOL rule ends with the image.

    prompt: int [n], up to IMG; then GRID rows of codes and EOL, EOF, EOI, text ids. No stop ends it.
    """
    import torch

    h, w = GRID
    tokens = torch.from_numpy(prompt.astype(np.int64))[None]
    out = []
    with torch.no_grad():
        for step in range(count):
            scores = model(tokens).logits[0, -1]
            column = step % (w + 1)
            if step < h * (w + 1):
                codes = range(vocabulary.visual_start, vocabulary.visual_start + vocabulary.codebook_size)
                allowed = [vocabulary.eol] if column == w else list(codes)
            elif step < h * (w + 1) + 2:
                allowed = [(vocabulary.eof, vocabulary.eoi)[step - h * (w + 1)]]
            else:
                allowed = list(range(vocabulary.text_size))
            best = allowed[int(torch.argmax(scores[torch.tensor(allowed)]))]
            out.append(best)
            tokens = torch.cat([tokens, torch.tensor([[best]])], dim=1)
    return np.asarray(out, np.int32)


def prompt_of(vocabulary) -> np.ndarray:
    """BOS, a prior, a prompt, and the target's header: what greedy decoding starts from."""
    from progemu_jax.text import sequence

    layout = sequence.Layout(*GRID, 512)
    return sequence.prompt_tokens(vocabulary, layout, some_codes(1, GRID)[0], "New small left pleural effusion.")[
        "tokens"
    ]


def vq_outputs(model, key: str) -> dict[str, np.ndarray]:
    """Codes and decoded images of the small pictures."""
    import torch

    out = {}
    with torch.no_grad():
        for size in ((16, 40),):
            pixels = torch.from_numpy(pictures(size, 4).astype(np.float32) / 255 * 2 - 1).permute(0, 3, 1, 2)
            arguments = (pixels,) if key == "original" else (pixels, torch.tensor([size] * 4))
            codes = model.encode(*arguments)
            codes = codes if isinstance(codes, torch.Tensor) else codes.image_tokens
            out[f"{key}_codes_{size[0]}x{size[1]}"] = torch.stack(list(codes)).reshape(4, *codes[0].shape[-2:]).numpy()
        decoded = model.decode(torch.from_numpy(some_codes(2, (12, 12)).astype(np.int64)))
        out[f"{key}_decoded"] = decoded.reshape(2, 3, 24, 24).permute(0, 2, 3, 1).numpy()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--emu3", required=True)
    emu3 = parser.parse_args().emu3
    import tempfile

    import torch

    from progemu_jax.text.vocabulary import (
        TEXT_FILE,
        VISION_FILE,
        load,
        write_ranks,
        write_vision_tokens,
    )

    torch.set_num_threads(1)
    vocabulary = load(None, CODES)
    full, lm = torch_full(TINY_VQ), torch_lm()
    vq = original_vq(emu3, TINY_VQ)
    tokens = torch.from_numpy(some_tokens(2, 40).astype(np.int64))
    out = {}
    with torch.no_grad():
        out["transformers_logits"] = full(input_ids=tokens).logits[:, ::8].numpy()
        run = lm(input_ids=tokens, output_hidden_states=True)
        out["original_logits"] = run.logits[:, ::8].numpy()
        out["hidden_states"] = np.stack([h[:, ::8].numpy() for h in run.hidden_states])
    out["greedy"] = greedy(lm, prompt_of(vocabulary), vocabulary, 38 + TEXT_TOKENS)
    out |= vq_outputs(full.model.vqmodel, "transformers") | vq_outputs(vq, "original")
    processor = original(emu3, "emu3.tokenizer.image_processing_emu3visionvq").Emu3VisionVQImageProcessor(**PROCESSOR)
    for size in SIZES:
        image = pictures(size, 1)[0]
        values = processor([image], return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        out[f"pixels_{size[0]}x{size[1]}"] = np.rint((values + 1) * 127.5).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_ranks(folder / TEXT_FILE, many_ranks())
        write_vision_tokens(folder / VISION_FILE, 32_768)
        reference = original_text_tokenizer(emu3, folder)
        ids = [reference.convert_tokens_to_ids(reference.tokenize(text)) for text in TEXTS]
        texts = [reference._decode(list(row)) for row in BROKEN]
    with tempfile.TemporaryDirectory() as folder:
        saved = {}
        for key, model in (("transformers", full), ("original_lm", lm), ("original_vq", vq)):
            model.save_pretrained(Path(folder, key))
            from safetensors import safe_open

            with safe_open(Path(folder, key, "model.safetensors"), "np") as file:
                saved[key] = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            saved[f"{key}_config"] = json.loads(Path(folder, key, "config.json").read_text())
    record = json.dumps({"saved": saved, "ids": ids, "texts": texts})
    out["record"] = np.frombuffer(zlib.compress(record.encode(), 9), np.uint8)
    np.savez_compressed(OUTPUTS, **out)
    print(f"{OUTPUTS}: {OUTPUTS.stat().st_size} bytes")


if __name__ == "__main__":
    main()
