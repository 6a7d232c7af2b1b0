"""One training step of the demo's two small models on a CPU: ours, ours at an earlier commit, PyTorch; JSON lines.

    make bench-small    # or: .venv/bin/python benchmarks/small.py [--models transformer tokenizer]
        [--dtypes float32 bfloat16] [--blocks=5] [--steps=10] [--commit=cebc0a4] [--torch=PYTHON]

The transformer: hidden 128, 4 layers of 4 heads, FFN 352, prior alignment, 16 rows of 224 tokens (8 x 8 codes of 512),
loss on what the demo of that commit learnt, codes softened, AdamW. The tokenizer: 64 x 64 images in patches of 4, 48
channels in two levels, 32 images, L1 and edges, AdamW. Random weights and data; both sides as a run trains them: a data
mesh over the cores, donated state, our compiler flags. Earlier code is taken from git into a temporary folder, and runs
in this environment.

Each side is a process of its own; they take blocks of steps in turn, and one rests while another works. A row a block;
the last rows have medians, ratios, and the losses of the first steps (same data; initial weights are drawn by each
side's own code: ours are equal, PyTorch has its own). --torch: a Python with PyTorch, whose plain layers of the same
sizes compute the same step (flash attention and fused AdamW, channels last).
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import child

CODES, SIDE, LENGTH, ROWS, IMAGES, PIXELS = 512, 8, 224, 16, 32, 64
RATE, DECAY, BETAS = 1e-3, 0.01, (0.9, 0.95)
TRANSFORMER = {
    "hidden_size": 128, "num_layers": 4, "num_heads": 4, "num_kv_heads": 4, "head_dim": 32, "intermediate_size": 352,
    "rope_theta": 1e4,
}  # fmt: skip
TOKENIZER = {"ch": 48, "patch": 4, "ch_mult": (1, 2), "attn_levels": (), "codebook_size": CODES}
TASK = {
    "length": LENGTH, "prompt_budget": 24, "weight_prior": 0.1, "weight_prompt": 0.1, "weight_structure": 0.1,
    "weight_text": 4.0, "changed_weight": 4.0, "soften": 0.5,
}  # fmt: skip
TEXT, PROMPT = (
    "There is a new small left pleural effusion. Mild edema is unchanged.",
    "New small left pleural effusion.",
)
ROOT = Path(__file__).parent.parent


def modules():
    """What a step needs, by name, from the package as it is laid out now or was before."""
    places = {
        "sequence": ("progemu_jax.text.sequence", "progemu_jax.sequence"),
        "vocabulary": ("progemu_jax.text.vocabulary", "progemu_jax.vocab"),
        "loop": ("progemu_jax.training.loop", "progemu_jax.train"),
        "sharding": ("progemu_jax.devices.sharding", "progemu_jax.sharding"),
        "accelerators": ("progemu_jax.devices.accelerators", "progemu_jax.speed"),
        "progemu": ("progemu_jax.tasks.progemu",),
        "tokenizer": ("progemu_jax.tasks.tokenizer",),
        "transformer": ("progemu_jax.models.transformer",),
        "vqgan": ("progemu_jax.models.vqgan",),
    }
    found = {}
    for name, candidates in places.items():
        for candidate in candidates:
            try:
                found[name] = importlib.import_module(candidate)
                break
            except ModuleNotFoundError as error:
                if not candidate.startswith(error.name or "?"):
                    raise
    return argparse.Namespace(**found)


def packed_rows(sequence, words):
    """{name: [ROWS, LENGTH]} of drawn pairs, a fifth of whose codes changed; f32 [CODES, 16] vectors of codes."""
    import numpy as np

    rng, layout = np.random.default_rng(0), sequence.Layout(SIDE, SIDE, LENGTH, TASK["prompt_budget"])
    codebook = rng.standard_normal((CODES, 16)).astype(np.float32)
    rows = []
    for _ in range(ROWS):
        prior = rng.integers(0, CODES, (SIDE, SIDE))
        followup = np.where(rng.random(prior.shape) < 0.2, rng.integers(0, CODES, prior.shape), prior)
        rows.append(sequence.pack(words, layout, prior, PROMPT, followup, TEXT))
        rows[-1] = {**rows[-1], "weights": np.ones(LENGTH, np.float32)}
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}, codebook


def images():
    import numpy as np

    return np.random.default_rng(0).integers(0, 256, (IMAGES, PIXELS, PIXELS)).astype(np.uint8)


def transformer_task(m, args, train):
    words = m.vocabulary.load(None, CODES)
    model = m.transformer.TransformerConfig(
        vocab_size=words.size, prior_alignment=True, dtype=args.dtype, **TRANSFORMER
    )
    batch, codebook = packed_rows(m.sequence, words)
    return m.progemu.ProgEmuTask(model, m.progemu.ProgEmuConfig(**TASK), train, words.visual_start, codebook), batch


def tokenizer_task(m, args, train):
    model = m.vqgan.VQGANConfig(dtype=args.dtype, **TOKENIZER)
    return m.tokenizer.TokenizerTask(model, m.tokenizer.TokenizerLossConfig(), train, PIXELS), {"image": images()}


def ours(args):
    """A function that takes so many steps and returns their losses."""
    from progemu_jax.main import use_all_cores

    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    use_all_cores()
    import jax
    import numpy as np

    m = modules()
    size, make = {"transformer": (ROWS, transformer_task), "tokenizer": (IMAGES, tokenizer_task)}[args.model]
    train = m.loop.TrainConfig(batch_size=size, steps=1000, learning_rate=RATE, weight_decay=DECAY, b2=BETAS[1])
    task, batch = make(m, args, train)
    mesh, key = m.sharding.make_mesh(), jax.random.key(0)
    shardings = m.loop._state_shardings(task, mesh, jax.eval_shape(task.init, key))

    def step(state, number, batch):
        state, metrics = task.train_step(state, batch, jax.random.fold_in(key, number))
        return jax.lax.with_sharding_constraint(state, shardings), metrics["loss"]

    with m.sharding.on(mesh):
        held = [jax.jit(task.init, out_shardings=shardings)(key)]
        batch, number = m.sharding.shard_batch(batch, mesh), 0
        at = [m.sharding.place(np.int32(n), mesh) for n in range(1000)]
        run = m.accelerators.compiled(jax.jit(step, donate_argnums=0), held[0], at[0], batch)

    def steps(count):
        nonlocal number
        losses = []
        for _ in range(count):
            held[0], loss = run(held[0], at[number], batch)
            losses.append(loss)
            number += 1
        return [float(x) for x in losses]

    return steps


def serve(args):
    """A side's process: answers a number of steps with the seconds of one, by the clock and of the processor."""
    if args.serve == "torch":
        import small_torch

        steps = small_torch.side(args.model, args.dtype)
    else:
        steps = ours(args)
    first = steps(3)

    def block(count):
        start, cpu = time.perf_counter(), time.process_time()
        steps(count)
        return {"seconds": (time.perf_counter() - start) / count, "cpu_seconds": (time.process_time() - cpu) / count}

    child.serve({"losses": [round(x, 4) for x in first], "flags": os.environ.get("XLA_FLAGS", "")}, block)


def earlier(commit, folder):
    """The folder, with the package of a commit in it."""
    archive = subprocess.run(
        ["git", "archive", commit, "progemu_jax"], cwd=ROOT, capture_output=True, check=True
    ).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return Path(folder)


def compare(args, sides, model, dtype):
    held = {}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a library that waits leaves the cores to the others
    for name, (python, path) in sides.items():
        os.environ["PYTHONPATH"] = str(path)
        kind = "torch" if name == "torch" else "ours"
        held[name] = child.Child(python, __file__, f"--serve={kind}", f"--model={model}", f"--dtype={dtype}")
    rows = {name: [] for name in held}
    for index in range(args.blocks):
        for name, side in held.items():
            rows[name].append(side(args.steps))
            row = {k: round(v, 4) for k, v in rows[name][-1].items()}
            print(json.dumps({"model": model, "dtype": dtype, "side": name, "block": index, **row}), flush=True)
    row = {"model": model, "dtype": dtype}
    for name, side in held.items():
        seconds = [x["seconds"] for x in rows[name]]
        row[name] = {
            "seconds": round(statistics.median(seconds), 4),
            "cpu_seconds": round(statistics.median(x["cpu_seconds"] for x in rows[name]), 4),
            **side.hello,
        }
        if name != "now":
            ratios = [a / b["seconds"] for a, b in zip(seconds, rows["now"], strict=True)]
            row[name]["times_as_long_as_now"] = round(statistics.median(ratios), 3)
        side.close()
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["transformer", "tokenizer"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--commit", default="cebc0a4", help="an earlier commit; '' leaves it out")
    parser.add_argument("--torch", default="", help="a Python with PyTorch; '' leaves it out")
    for name in ("serve", "model", "dtype"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"now": (sys.executable, ROOT)}
        if args.commit:
            sides["before"] = (sys.executable, earlier(args.commit, folder))
        if args.torch:
            sides["torch"] = (args.torch, ROOT)
        for model in args.models:
            for dtype in args.dtypes:
                compare(args, sides, model, dtype)


if __name__ == "__main__":
    main()
