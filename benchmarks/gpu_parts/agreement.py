"""GPU and CPU compute the same: small models in float32, with `jax.jit` and without (`jax.disable_jit`).

The reference is a process whose only device is the CPU, and which compiles nothing; weights and inputs are the same
bits on both. `relative` is |a - b| / |b| over all numbers of a result; codes and words must be equal.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import train as training

from gpu_parts import tools
from progemu_jax.kernels import attention
from progemu_jax.models import transformer, unet, vqgan
from progemu_jax.sampling import generate
from progemu_jax.sampling.engine import Grammar
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Layout

# float32 sums in another order; bfloat16 has 8 bits. Gradients of a few steps go through AdamW, which divides by them.
TOLERANCES = {"attention in bfloat16": 2e-2, "losses of three steps": 1e-3}
TOLERANCE = 1e-4
CODES, SIDE, WORDS = 64, 2, 3
FOLDER = "PROGEMU_GPU_REFERENCE"  # environment of the CPU's process: where its results go


def language_model():
    words = vocabulary.load(codebook_size=CODES)
    config = transformer.TransformerConfig(
        vocab_size=len(words), hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
        intermediate_size=48, max_length=128, prior_alignment=True, prior_beside=True,
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    return words, config, tools.on_host(shapes, std=0.2)


def cached_logits():
    """Logits of two tokens behind a filled cache."""
    _, config, params = language_model()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 11)).astype(np.int32)

    @jax.jit
    def run(params):
        net, cache = transformer.Transformer(config), transformer.init_cache(config, 2, 12)
        _, cache = net.apply({"params": params}, tokens[:, :9], aligned=tokens[:, :9], cache=cache, prefill=True)
        last = {"aligned": tokens[:, 9:], "beside": tokens[:, 9:]}
        hidden, _ = net.apply({"params": params}, tokens[:, 9:], cache=cache, **last)
        return transformer.logits(params, hidden)

    return run(params)


def greedy():
    """Codes and words of a guided greedy request."""
    words, config, params = language_model()
    layout, grammar = Layout(SIDE, SIDE, config.max_length), Grammar.of(words)
    policy = Sampling(temperature=0.0, text_temperature=0.0, guidance=2.0, text_guidance=2.0, max_text=WORDS)
    prompts = pad_prompts(words, layout, [np.arange(SIDE**2).reshape(SIDE, SIDE)], ["New."], policy=policy)
    keys = jax.vmap(jax.random.key)(np.zeros(1, np.uint32))
    out = generate.generate(params, config, layout, grammar, policy, prompts, keys)
    return np.concatenate([np.ravel(out.codes), np.ravel(out.text)])


def image_tokenizer(method):
    config = vqgan.VQGANConfig(ch=16, ch_mult=(1, 2), attn_levels=(1,), z_channels=4, embed_dim=4, codebook_size=CODES)
    shapes = jax.eval_shape(lambda: vqgan.init_variables(config, jax.random.key(0)))
    rng, net = np.random.default_rng(0), vqgan.VQGAN(config)
    inputs = {
        "encode": rng.uniform(-1, 1, (1, 8, 8, 1)).astype(np.float32),
        "detokenize": rng.integers(0, CODES, (1, 4, 4)).astype(np.int32),
    }
    return jax.jit(lambda variables, x: net.apply(variables, x, method=method))(
        tools.on_host(shapes, std=0.2), inputs[method]
    )


def noise():
    """What the UNet predicts."""
    config = unet.UNetConfig(in_channels=8, channels=(8, 16), attention=(False, True), heads=2, cross_attention_dim=16)
    shapes = jax.eval_shape(lambda: unet.init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)
    x, text = (rng.standard_normal(s).astype(np.float32) for s in ((2, 4, 4, 8), (2, 3, 16)))
    return jax.jit(lambda p: unet.UNet(config).apply({"params": p}, x, jnp.asarray([3.0, 700.0]), text))(
        tools.on_host(shapes, std=0.2)
    )


def flash_attention():
    """Attention of tokens over themselves in bfloat16, by the kernel that the device has for it."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((2, 2, g, 128, 64)).astype(jnp.bfloat16) for g in (3, 1, 1))
    run = jax.jit(lambda q, k, v: attention.self_attend(q, k[:, :, 0], v[:, :, 0], None, "auto", 64))
    return run(q, k, v).astype(np.float32)


def losses():
    size = {"config": "smallest", "batch": jax.device_count(), "length": 32, "chunk": 16, "attention": "xla"}
    one, _, _ = training.ours(argparse.Namespace(**size), "float32", "float32", training.SIZES["smallest"])
    return np.asarray([one() for _ in range(3)])


# Result: (function, whether it is also computed without jit; of the smallest size).
RESULTS = {
    "transformer": (cached_logits, True, False),
    "attention in bfloat16": (flash_attention, True, True),
    "losses of three steps": (losses, False, False),
    "image decoder": (lambda: image_tokenizer("detokenize"), True, False),
    "image encoder": (lambda: image_tokenizer("encode"), True, False),
    "unet": (noise, True, False),
    "codes and words": (greedy, True, False),  # without jit each of some 500 operations compiles by itself: last
}


def tasks(run):
    """[(name, jit, function)] in order: all with jit, then what is computed without."""
    chosen = {name: row for name, row in RESULTS.items() if row[2] or not run.few}
    return [(name, jit, row[0]) for jit in (True, False) for name, row in chosen.items() if jit or row[1]]


def compute(name, jit, function):
    # By itself a GPU multiplies float32 as TF32.
    with jax.disable_jit(not jit), jax.default_matmul_precision("highest"):
        return np.asarray(function())


def file_of(folder, name, jit):
    return Path(folder) / f"{name}{'' if jit else ' without jit'}.npy"


def reference(run):
    """The part's other process: writes what the CPU makes, a file a result, into the folder of the environment."""
    folder = Path(os.environ[FOLDER])
    for name, jit, function in tasks(run):
        if run.left() < 0:  # nobody waits any more
            return
        value = run.attempt(name, lambda n=name, j=jit, f=function: compute(n, j, f))
        if value is not None:
            np.save(folder / "part.npy", value)
            (folder / "part.npy").rename(file_of(folder, name, jit))


def agreement(run):
    mine = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(Path(__file__).parents[1] / "gpu.py"), f"--size={run.size}", "--only=reference"]
        command.append(f"--until={run.until}")
        environment = os.environ | {"JAX_PLATFORMS": "cpu", FOLDER: folder}
        process = subprocess.Popen(command, env=environment, stdout=sys.stderr)
        try:
            for name, jit, function in tasks(run):
                if run.left() < 2:
                    run.say(result=name, jit=jit, skipped="no time is left for it")
                    continue
                began = time.time()
                found = run.attempt(name, lambda n=name, j=jit, f=function: compute(n, j, f))
                if found is None:
                    continue
                mine[name, jit], seconds, path = found, time.time() - began, file_of(folder, name, jit)
                while not path.exists() and process.poll() is None and run.left() > 0:
                    time.sleep(0.05)
                if path.exists():
                    run.say(result=name, jit=jit, beside="cpu", seconds=seconds, **compare(name, found, np.load(path)))
                else:
                    run.say(result=name, jit=jit, failed="the CPU's process has not given this result")
                if not jit and (name, True) in mine:
                    run.say(result=name, jit=True, beside="without jit", **compare(name, mine[name, True], found))
        finally:
            process.kill()
            process.wait()


def compare(name, found, wanted):
    """The fields of a row: how far two results are apart, and whether that is within what is allowed."""
    if np.issubdtype(wanted.dtype, np.integer):
        return {"equal": float((found == wanted).mean()), "within": bool((found == wanted).all())}
    apart = float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))
    allowed = TOLERANCES.get(name, TOLERANCE)
    return {"relative": apart, "allowed": allowed, "within": bool(apart <= allowed)}
