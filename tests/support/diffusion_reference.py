"""Small diffusion checkpoints with known weights, and what PyTorch makes of them.

    PYTHONPATH=tests .venv-parity/bin/python -m support.diffusion_reference  # writes tests/golden/diffusion_outputs.npz

The libraries `diffusers` and `transformers` are the reference. Nothing of theirs is stored but numbers and names.
Weights are drawn by tensor name, as in `emu3_reference`, so that both sides make the same ones without a file; none is
at its initial value.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np

from support.emu3_reference import TEXTS, uniform

OUTPUTS = Path(__file__).parents[1] / "golden/diffusion_outputs.npz"
LATENT = (8, 8)
STEPS = {"ddim": 50, "dpm++": 20}
GUIDANCE, IMAGE_GUIDANCE = 7.5, 1.5
SCHEDULE = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
}  # fmt: skip
UNET = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 16,
    "sample_size": 8,
}
PAIRS_UNET = UNET | {"in_channels": 8, "encoder_hid_dim": 20, "encoder_hid_dim_type": "text_proj"}
VAE = {
    "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
}
BERT = {
    "hidden_size": 40, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 90,
    "max_position_embeddings": 32,
}  # fmt: skip
CLIP = BERT | {"bos_token_id": 88, "eos_token_id": 89, "pad_token_id": 89}
KINDS = ("unet", "pairs_unet", "vae", "bert", "clip")
WORDS = (
    "new small left right pleural effusion pneumothorax no un ##changed ##s ##ing card ##io ##megaly edema it ' s the "
    "patient they ll return 64 * 2 . 5 cm 1 , 234 hu at 07 : 45 naive ##ive nodule 胸 部 ≥ ##増 [MASK] visual token"
)
MERGES = (
    "l e,e f,le f,lef t</w>,t h,th e</w>,e f,ef f,u s,i o,io n</w>,eff us,effus ion</w>,n e,ne w</w>,' s</w>,' l,"
    "'l l</w>,"
    "Ã ©,s m,a l,sm al,smal l</w>,1 2,\" '"
)
LINES = [text for text in TEXTS if "\ud83d" not in text] + [
    "Unchanged cardiomegaly; no new effusions.", "(left)-sided  PNEUMOTHORAX?!", "İstanbul Σίσυφος ΣΑΣ ǅ ﬀ",
    "a\u2028b\u00a0c\u3000d\x1ce\x85f", "[CLS] left [SEP] [mask] [MASK]!", "x" * 101 + " left", "\"'s 'S ''ll don't",
    "<|startoftext|> new LEFT<|endoftext|>effusion", "½ ² Ⅷ 一二 ٣", "é e\u0301 Å",
]  # fmt: skip


def weight(name: str, shape) -> np.ndarray:
    """The tensor of a name in the checkpoint's own layout, float32. Prefixes do not count."""
    name = name.removeprefix("text_model.")
    u = uniform(name, shape)
    if "norm" in name.lower() and name.endswith("weight"):
        return (0.5 + u).astype(np.float32)
    if len(shape) == 1:
        return (0.4 * u - 0.2).astype(np.float32)
    if "embedding" in name and not name.startswith("time"):
        return (2 * u - 1).astype(np.float32)
    # Latents keep a spread of about 1, and the noise that is predicted too.
    gain = {"conv_out.weight": 1.5, "quant_conv.weight": 2, "decoder.conv_out.weight": 0.3}.get(name, 1)
    return ((2 * u - 1) * math.sqrt(3 / math.prod(shape[1:])) * gain).astype(np.float32)


def normals(name: str, shape) -> np.ndarray:
    """float32 standard normals, the same everywhere for a name and shape."""
    a, b = uniform(name, shape), uniform(f"{name}/2", shape)
    return (np.sqrt(-2 * np.log(1 - a)) * np.cos(2 * np.pi * b)).astype(np.float32)


def inputs(channels: int, width: int, rows: int = 2) -> dict[str, np.ndarray]:
    """Latents [B, h, w, C], times, text [B, S, X], and which of its tokens count."""
    return {
        "latents": normals("latents", (rows, *LATENT, channels)),
        "times": np.asarray([981, 3, 500, 20][:rows]),
        "text": normals("text", (rows, 7, width)),
        "mask": np.arange(7)[None] < np.asarray([7, 4, 2, 5])[:rows, None],
    }


def trajectory() -> dict[str, np.ndarray]:
    """Noise and prior's latent [B, h, w, 4], text [B, S, X] and the empty text's [S, X]."""
    return {
        "noise": normals("noise", (2, *LATENT, 4)),
        "prior": normals("prior", (2, *LATENT, 4)),
        "text": normals("text", (2, 7, 20)),
        "null_text": normals("null", (7, 20)),
    }


def images() -> np.ndarray:
    """float32 [2, 24, 32, 3] in [-1, 1]."""
    y, x = np.mgrid[:24, :32] / 32
    ramps = np.stack([x, y, 1 - x * y], -1)[None] * np.asarray([1, 0.6])[:, None, None, None]
    return np.clip(2 * ramps - 1 + 0.2 * normals("pixels", (2, 24, 32, 3)), -1, 1).astype(np.float32)


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """ids int32 [2, 12] and the mask of no padding."""
    ids = (uniform("tokens", (2, 12)) * 87).astype(np.int32)
    mask = np.arange(12)[None] < np.asarray([12, 7])[:, None]
    return np.where(mask, ids, 89), mask


def wordpieces() -> list[str]:
    """A WordPiece vocabulary."""
    letters = [c for i in range(33, 127) if not (c := chr(i)).isupper() and c not in "qz"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS.split(), *letters, *(f"##{c}" for c in letters)]
    return list(dict.fromkeys(tokens))


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's kind of vocabulary and merges."""
    from progemu_jax.text.text_tokenizers import byte_characters

    merges = [tuple(line.split()) for line in MERGES.split(",")]
    characters = list(byte_characters().values())
    tokens = [*characters, *(f"{c}</w>" for c in characters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


# --- PyTorch ---


def token_ids(folder: Path) -> dict[str, list[list[int]]]:
    """What the tokenizers of `transformers` make of LINES, padded to 24."""
    from transformers import BertTokenizer, CLIPTokenizer

    from progemu_jax.text.text_tokenizers import ClipBPE, WordPiece

    out = {}
    for name, ours, cls in (
        ("bert", WordPiece(wordpieces()), BertTokenizer),
        ("clip", ClipBPE(*clip_vocabulary()), CLIPTokenizer),
    ):
        (folder / name).mkdir()
        ours.save(folder / name)
        theirs = cls.from_pretrained(folder / name)
        out[name] = theirs(LINES, padding="max_length", truncation=True, max_length=24)["input_ids"]
    return out


def models():
    """{name: PyTorch module} with the known weights."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

    out = {
        "unet": UNet2DConditionModel(**UNET),
        "pairs_unet": UNet2DConditionModel(**PAIRS_UNET),
        "vae": AutoencoderKL(**VAE),
        "bert": BertModel(BertConfig(**BERT)),
        "clip": CLIPTextModel(CLIPTextConfig(**CLIP)),
    }
    with torch.no_grad():
        for module in out.values():
            for name, tensor in module.named_parameters():
                tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape))))
            module.eval()
    return out


def channels_first(x: np.ndarray):
    """[B, h, w, C] -> torch [B, C, h, w]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x) -> np.ndarray:
    """torch [B, C, h, w] -> [B, h, w, C]."""
    return np.ascontiguousarray(x.numpy().transpose(0, 2, 3, 1))


def reference(modules) -> dict[str, np.ndarray]:
    """What PyTorch computes."""
    import torch

    out = {}
    with torch.inference_mode():
        for name, width in (("unet", 24), ("pairs_unet", 20)):
            x = inputs(modules[name].config.in_channels, width)
            call = (channels_first(x["latents"]), torch.from_numpy(x["times"]), torch.from_numpy(x["text"]))
            out[name] = channels_last(modules[name](*call).sample)
            mask = torch.from_numpy(x["mask"])
            out[f"{name}_masked"] = channels_last(modules[name](*call, encoder_attention_mask=mask).sample)
        moments = modules["vae"].encode(channels_first(images())).latent_dist
        out["mean"], out["logvar"] = channels_last(moments.mean), channels_last(moments.logvar)
        out["decoded"] = channels_last(modules["vae"].decode(channels_first(normals("z", (2, 6, 8, 4)))).sample)
        ids, mask = (torch.from_numpy(x) for x in tokens())
        out["bert"] = modules["bert"](ids, attention_mask=mask).last_hidden_state.numpy()
        out["clip"] = modules["clip"](ids).last_hidden_state.numpy()
        for solver in STEPS:
            out[f"sampled_{solver}"] = sampled(modules["pairs_unet"], solver)
    return out


def sampled(unet, solver: str) -> np.ndarray:
    """Diffusers' scheduler from the known noise, with InstructPix2Pix's two guidance scales."""
    import torch
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

    x = trajectory()
    if solver == "ddim":
        scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    else:
        scheduler = DPMSolverMultistepScheduler(**SCHEDULE)
    scheduler.set_timesteps(STEPS[solver])
    latents, prior = channels_first(x["noise"]), channels_first(x["prior"])
    text, null = torch.from_numpy(x["text"]), torch.from_numpy(x["null_text"])[None].expand(2, -1, -1)
    texts = torch.cat([text, null, null])
    priors = torch.cat([prior, prior, torch.zeros_like(prior)])
    with torch.inference_mode():
        for time in scheduler.timesteps:
            rows = torch.cat([torch.cat([latents] * 3), priors], dim=1)
            full, image, none = unet(rows, time, texts).sample.chunk(3)
            noise = none + GUIDANCE * (full - image) + IMAGE_GUIDANCE * (image - none)
            latents = scheduler.step(noise, time, latents).prev_sample
    return channels_last(latents)


def save(module, folder: Path) -> None:
    """The module as its library saves it."""
    module.save_pretrained(folder)


def main():
    import tempfile

    from safetensors import safe_open

    modules = models()
    out, record = reference(modules), {"saved": {}, "config": {}}
    for name in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            save(modules[name], folder)
            file = next(Path(folder).glob("*.safetensors"))
            with safe_open(file, "numpy") as opened:
                record["saved"][name] = {k: opened.get_slice(k).get_shape() for k in opened.keys()}  # noqa: SIM118
            record["config"][name] = json.loads((Path(folder) / "config.json").read_text())
            record.setdefault("file", {})[name] = file.name
    record["counts"] = full_counts()
    with tempfile.TemporaryDirectory() as folder:
        record["ids"] = token_ids(Path(folder))
    out = {k: v.astype(np.float32) for k, v in out.items()}
    packed = np.frombuffer(zlib.compress(json.dumps(record).encode(), 9), np.uint8)
    np.savez_compressed(OUTPUTS, record=packed, **out)
    print(f"{OUTPUTS}: {OUTPUTS.stat().st_size} bytes")
    for name, value in out.items():
        print(name, value.shape, "std", value.std())


def full_counts() -> dict[str, int]:
    """Parameters of the full shapes, built on PyTorch's meta device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel

    wide = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    pairs = {"in_channels": 8, "encoder_hid_dim": 768, "encoder_hid_dim_type": "text_proj"}
    clip = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    with torch.device("meta"):
        full = {
            "unet": UNet2DConditionModel(cross_attention_dim=768),
            "medjourney": UNet2DConditionModel(cross_attention_dim=768, **pairs),
            "vae": AutoencoderKL(**wide, **blocks),
            "clip": CLIPTextModel(CLIPTextConfig(**clip)),
            "bert": BertModel(BertConfig(vocab_size=30_522), add_pooling_layer=False),
        }
    return {name: sum(p.numel() for p in module.parameters()) for name, module in full.items()}


if __name__ == "__main__":
    main()
