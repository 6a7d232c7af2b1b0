"""The device itself; a training step, the image tokenizer and the UNet on it."""

import argparse
import os
import platform
import statistics
import subprocess
from pathlib import Path

import diffusion
import jax
import jax.numpy as jnp
import numpy as np
import train as training
import vq

from gpu_parts import tools
from progemu_jax.devices import accelerators
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.models import unet as unets
from progemu_jax.models import vqgan


def device(run):
    """Versions, and the two ceilings as measured: memory and matrix products."""
    if not run.small and jax.default_backend() != "gpu":
        raise RuntimeError(f"JAX sees no GPU here but {jax.default_backend()}; install jax[cuda12], or --size=small")
    commit = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        version = subprocess.run(commit, capture_output=True, text=True).stdout.strip()
    except OSError:
        version = ""
    run.say(
        device=jax.devices()[0].device_kind, platform=jax.devices()[0].client.platform_version.split("\n")[0],
        jax=jax.__version__, python=platform.python_version(), cores=os.cpu_count(), commit=version or None,
        size=run.size,
    )  # fmt: skip
    run.say(bandwidth=tools.bandwidth(), copy=tools.copy_bandwidth(1 << (12 if run.small else 29)))
    side = 64 if run.small else 8192
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
    product = jax.jit(lambda x: x @ x)
    jax.block_until_ready(product(x))
    run.say(product=side, flops=2 * side**3 / tools.seconds(lambda: product(x), 10), peak=accelerators.peak_flops())


def train(run):
    """benchmarks/train.py's 1b, one row of 9,216 tokens, with each kernel of attention that is here."""
    small = {"config": "smallest", "batch": jax.device_count(), "length": 32, "chunk": 16, "steps": 1, "blocks": 1}
    large = {"config": "1b", "batch": 1, "length": 9216, "chunk": 1024, "steps": 5, "blocks": 2}
    for attention in ("cudnn", "xla") if jax.default_backend() == "gpu" else ("xla",):
        args = argparse.Namespace(**(small if run.small else large), attention=attention)
        row = run.attempt(attention, lambda args=args: training.accelerator(args))
        if row:
            run.say(**row)


def tokenizer(run):
    """Images a second of Emu3's image tokenizer as users call it: uint8 in and out, transfers included."""
    batch, side = (2, 16) if run.small else (4, 512)
    tiny = {"ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_levels": (1,), "codebook_size": 64}
    images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    calls = {}
    for dtype in ("bfloat16",) if run.small else ("bfloat16", "float32"):
        config = vqgan.emu3_vq(dtype=dtype, **(tiny if run.small else {}))
        shapes = jax.eval_shape(lambda config=config: vqgan.init_variables(config, jax.random.key(0)))
        model = Tokenizer(jax.device_put(tools.on_host(shapes)), config)
        codes = np.random.default_rng(1).integers(0, config.codebook_size, (batch, *(side // config.factor,) * 2))
        calls[f"encode {dtype}"] = lambda model=model: model.tokenize(images)
        calls[f"decode {dtype}"] = lambda model=model, codes=codes: model.detokenize(codes, rgb=True)
    for name in tools.at_once(run, calls):
        rounds = vq.measure(name, {"rate": calls[name]}, 1 if run.small else 3, batch, lambda **row: None)
        rate = statistics.median(row["rate"] for row in rounds)
        run.say(call=name, size=side, batch=batch, images_per_second=rate, seconds=batch / rate)


def unet(run):
    """Denoising with Stable Diffusion's UNet as InstructPix2Pix calls it: three rows a case, DDIM."""
    tiny = unets.UNetConfig(in_channels=8, channels=(8, 16), attention=(False, True), heads=2, cross_attention_dim=16)
    config, side, steps, tokens = (tiny, 4, 2, 3) if run.small else (unets.sd15(in_channels=8), 64, 50, 77)
    shapes = jax.eval_shape(lambda: unets.init_params(config, jax.random.key(0)))
    params, calls = jax.device_put(tools.on_host(shapes, jnp.bfloat16)), {}
    for batch in (1,) if run.small else (1, 4):
        x = diffusion.inputs(batch, side, tokens, config.cross_attention_dim)
        calls[batch] = diffusion.our_steps(params, config, "bfloat16", x, steps)
    for batch in tools.at_once(run, calls, 0.8):
        taken = tools.seconds(calls[batch], 1 if run.small else 3)
        run.say(batch=batch, steps=steps, latents=side, seconds=taken, steps_per_second=steps / taken,
                images_per_minute=60 * batch / taken)  # fmt: skip
