"""Small VQGANs in taming-transformers' names with known weights, and what PyTorch makes of them.

    PYTHONPATH=tests .venv-parity-eval/bin/python -m support.vqgan_reference  # writes tests/golden/vqgan_outputs.npz

The reference is `VQModel` of torchxrayvision's `baseline_models/ieee8023/vqgan.py`, loaded by itself: it needs PyTorch
alone. Nothing of it is stored but numbers. Weights are drawn by tensor name, as in `emu3_reference`.
"""

import importlib.util
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from support.emu3_reference import uniform, weight

OUTPUTS = Path(__file__).parents[1] / "golden/vqgan_outputs.npz"
# Of taming-transformers' f=16 models of ImageNet, trained at 256 x 256.
F16 = {
    "channels": 3, "ch": 128, "ch_mult": (1, 1, 2, 2, 4), "blocks": 2, "attention": (4,), "z": 256, "embed": 256,
    "codes": 16_384,
}  # fmt: skip
GRAY = {"channels": 1, "ch": 32, "ch_mult": (1, 2), "blocks": 1, "attention": (), "z": 8, "embed": 4, "codes": 64}
RGB = {"channels": 3, "ch": 32, "ch_mult": (1, 1, 2), "blocks": 2, "attention": (1, 2), "z": 6, "embed": 6, "codes": 64}
MODELS = {"gray": GRAY, "rgb": RGB}
SIDE = 24  # of the images; 24 / 4 is no power of two


def shapes(channels, ch, ch_mult, blocks, attention, z, embed, codes):
    """{name: shape} of the whole state dict, written out from the architecture."""
    out = {}

    def conv(name, outputs, inputs, k=3):
        out[f"{name}.weight"], out[f"{name}.bias"] = (outputs, inputs, k, k), (outputs,)

    def norm(name, width):
        out[f"{name}.weight"] = out[f"{name}.bias"] = (width,)

    def residual(name, width, outputs):
        norm(f"{name}.norm1", width)
        conv(f"{name}.conv1", outputs, width)
        norm(f"{name}.norm2", outputs)
        conv(f"{name}.conv2", outputs, outputs)
        if width != outputs:
            conv(f"{name}.nin_shortcut", outputs, width, 1)
        return outputs

    def attend(name, width):
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(name, width):
        residual(f"{name}.block_1", width, width)
        attend(f"{name}.attn_1", width)
        residual(f"{name}.block_2", width, width)

    width, last = ch, len(ch_mult) - 1
    conv("encoder.conv_in", ch, channels)
    for level, multiple in enumerate(ch_mult):
        for block in range(blocks):
            width = residual(f"encoder.down.{level}.block.{block}", width, ch * multiple)
            if level in attention:
                attend(f"encoder.down.{level}.attn.{block}", width)
        if level < last:
            conv(f"encoder.down.{level}.downsample.conv", width, width)
    middle("encoder.mid", width)
    norm("encoder.norm_out", width)
    conv("encoder.conv_out", z, width)
    conv("decoder.conv_in", width, z)
    middle("decoder.mid", width)
    for level in range(last, -1, -1):
        for block in range(blocks + 1):
            width = residual(f"decoder.up.{level}.block.{block}", width, ch * ch_mult[level])
            if level in attention:
                attend(f"decoder.up.{level}.attn.{block}", width)
        if level:
            conv(f"decoder.up.{level}.upsample.conv", width, width)
    norm("decoder.norm_out", width)
    conv("decoder.conv_out", channels, width)
    out["quantize.embedding.weight"] = codes, embed
    conv("quant_conv", embed, z, 1)
    conv("post_quant_conv", z, embed, 1)
    return out


def values(sizes):
    """{name: array} of a whole state dict with known weights."""
    return {name: weight(name, shape) for name, shape in shapes(**sizes).items()}


def write(path, sizes, dtype=np.float32):
    """The weights as one file; beside them those of the losses that a training keeps."""
    path.parent.mkdir(parents=True, exist_ok=True)
    losses = {"loss.discriminator.main.0.weight": np.ones((4, 3, 4, 4), np.float32)}
    save_file({name: array.astype(dtype) for name, array in (values(sizes) | losses).items()}, path)
    return path


def images(sizes):
    """float32 [2, SIDE, SIDE, C] in [-1, 1]."""
    return (2 * uniform("images", (2, SIDE, SIDE, sizes["channels"])) - 1).astype(np.float32)


def radiographs():
    """uint8 [2, SIDE, SIDE]."""
    return (256 * uniform("radiographs", (2, SIDE, SIDE))).astype(np.uint8)


def some_codes(sizes):
    """int32 [2, h, w]."""
    side = SIDE // 2 ** (len(sizes["ch_mult"]) - 1)
    return (uniform("codes", (2, side, side)) * sizes["codes"]).astype(np.int32)


def model_class():
    """The library's `VQModel`, without its other files. None where the library or PyTorch is not installed."""
    found = importlib.util.find_spec("torchxrayvision")
    if found is None or importlib.util.find_spec("torch") is None:
        return None
    path = Path(found.origin).parent / "baseline_models/ieee8023/vqgan.py"
    spec = importlib.util.spec_from_file_location("ieee8023_vqgan", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VQModel


def build(sizes):
    """The library's model of these sizes, with its own initial values."""
    factor = 2 ** (len(sizes["ch_mult"]) - 1)
    side = 16 * factor  # of the images that it is made for: level n works at side / 2**n
    config = {
        "double_z": False, "z_channels": sizes["z"], "resolution": side, "in_channels": sizes["channels"],
        "out_ch": sizes["channels"], "ch": sizes["ch"], "ch_mult": sizes["ch_mult"], "num_res_blocks": sizes["blocks"],
        "attn_resolutions": [side // 2**level for level in sizes["attention"]], "dropout": 0.0,
    }  # fmt: skip
    return model_class()(config, sizes["codes"], sizes["embed"])


def reference():
    """{name: array}: latents before quantisation [B, h, w, E], codes [B, h, w], images of codes [B, H, W, C].

    And the codes of radiographs, scaled to the library's range and from there as its `VQGAN.encode` does it.
    """
    import torch

    out = {}
    for name, sizes in MODELS.items():
        model = build(sizes).eval()
        model.load_state_dict({n: torch.from_numpy(array) for n, array in values(sizes).items()})
        with torch.inference_mode():
            x = torch.from_numpy(images(sizes)).permute(0, 3, 1, 2)
            latents = model.quant_conv(model.encoder(x))
            codes = model.encode(x)[2][2].reshape(latents.shape[0], *latents.shape[2:])
            vectors = model.quantize.embedding(torch.from_numpy(some_codes(sizes))).permute(0, 3, 1, 2)
            decoded = model.decode(vectors)
            if sizes is RGB:
                scaled = (2 * torch.from_numpy(radiographs()).float()[:, None] / 255 - 1) * 1024
                film = model.encode((scaled / 1024).repeat(1, 3, 1, 1))[2][2]
                out["radiograph_codes"] = film.reshape(codes.shape).numpy().astype(np.int32)
        out[f"{name}_latents"] = latents.permute(0, 2, 3, 1).numpy()
        out[f"{name}_codes"] = codes.numpy().astype(np.int32)
        out[f"{name}_decoded"] = decoded.permute(0, 2, 3, 1).numpy()
    return out


if __name__ == "__main__":
    np.savez_compressed(OUTPUTS, **reference())
    print(f"{OUTPUTS}: {OUTPUTS.stat().st_size} bytes")
