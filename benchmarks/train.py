"""One training step of an Emu3-shaped language model against PyTorch with `transformers`' Emu3; prints JSON lines.

    make bench-train      # or: .venv-parity/bin/python benchmarks/train.py [--blocks=3] [--steps=2] [--worker=PYTHON]
    python benchmarks/train.py --config=1b     # ours alone, on an accelerator: tokens a second and MFU at 9,216 tokens

Hidden 512, 8 layers, 8/4 heads, FFN 1,408, vocabulary 184,622, 2 x 640 tokens, loss on all of them, AdamW, dropout 0,
no clipping, random weights; in float32, and with bfloat16 products (parameters float32 on both sides; autocast there).
Each side is a process of its own; they take blocks of steps in turn, and one rests while another works. Peak memory is
the process's largest resident set. PyTorch has its fused AdamW; ours computes layers again in the backward pass and has
XLA's scheduler for little memory. A row a block; the last row of each dtype has medians and ratios. Compilation and the
first step are not counted in the time, but are in the memory. Tokens a second of CPU time say more on a busy machine.
--worker: another Python (with another JAX) that ours runs in.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import time

import child

SIZES = {
    "small": {"hidden_size": 512, "num_layers": 8, "num_heads": 8, "num_kv_heads": 4, "intermediate_size": 1408},
    "1b": {"hidden_size": 2048, "num_layers": 16, "num_heads": 16, "num_kv_heads": 8, "intermediate_size": 5632},
    "smallest": {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 48}
    | {"vocab_size": 512},
}
VOCABULARY = 184_622
CHUNKS = {"float32": 160, "bfloat16": 320}  # tokens of each row at the head at a time: what is kept of them is as large
RATE, DECAY = 1e-4, 0.1


def tokens_of(batch, length, vocabulary=VOCABULARY):
    import numpy as np

    return np.random.default_rng(0).integers(0, vocabulary, (batch, length)).astype(np.int32)


def ours(args, dtype, moments, size):
    """A function that takes one step and returns the loss; what to say of it; the model's config."""
    if args.config == "small":  # one single-threaded device a core, the vocabulary split over them
        from progemu_jax.main import use_all_cores

        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        use_all_cores()
    import jax
    import numpy as np

    from progemu_jax.devices import accelerators, sharding
    from progemu_jax.models.transformer import TransformerConfig
    from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask
    from progemu_jax.text.sequence import Kind
    from progemu_jax.training.loop import TrainConfig

    model = TransformerConfig(
        head_dim=size["hidden_size"] // size["num_heads"], max_length=args.length, dtype=dtype, remat=True,
        remat_policy="attention", scan_layers=True, param_dtype="float32", attention=args.attention,
        attention_block=1024 if args.config == "1b" else 128,
        **({"vocab_size": VOCABULARY} | size),
    )  # fmt: skip
    train = TrainConfig(
        steps=10**6, batch_size=args.batch, learning_rate=RATE, final_learning_rate=RATE, warmup_steps=0,
        weight_decay=DECAY, b2=0.95, clip=0.0, moment_dtype=moments,
    )  # fmt: skip
    chunk = args.chunk or CHUNKS[dtype]
    task = ProgEmuTask(model, ProgEmuConfig(length=args.length, loss_chunk=chunk), train)
    mesh = sharding.make_mesh(1, 1, jax.device_count()) if args.config == "small" else sharding.make_mesh()
    tokens = tokens_of(args.batch, args.length, model.vocab_size)
    kinds = np.full(tokens.shape, Kind.VISUAL, np.int8)
    kinds[:, 0] = Kind.BOS
    batch = {
        "tokens": tokens,
        "kinds": kinds,
        "positions": np.broadcast_to(np.arange(args.length, dtype=np.int32), tokens.shape),
        "aligned": np.full(tokens.shape, -1, np.int32),
        "weights": np.ones(tokens.shape, np.float32),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    shardings = task.state_shardings(mesh, jax.eval_shape(task.init, jax.random.key(0)))
    state = jax.jit(task.init, out_shardings=shardings)(jax.random.key(0))
    step = jax.jit(task.train_step, donate_argnums=0, out_shardings=(shardings, None))
    compiled = accelerators.compiled(step, state, batch, jax.random.key(1))
    memory = compiled.memory_analysis()
    said = {"parameters": sum(x.size for x in jax.tree.leaves(state["params"])), "jax": jax.__version__}
    said["loss_chunk"] = chunk
    said["temporaries_mb"] = memory.temp_size_in_bytes * jax.device_count() >> 20
    said["device"] = jax.devices()[0].device_kind
    held = [state]
    del state

    def one():
        held[0], metrics = compiled(held[0], batch, jax.random.key(1))
        return float(metrics["loss"])

    return one, said, model


def theirs(args, dtype, size):
    """The same of PyTorch."""
    import torch
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    names = {"num_layers": "num_hidden_layers", "num_heads": "num_attention_heads"}
    names["num_kv_heads"] = "num_key_value_heads"
    config = Emu3TextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=args.length, attention_dropout=0.0, use_cache=False,
        pad_token_id=151_643, **{names.get(k, k): v for k, v in size.items()},
    )  # fmt: skip
    model = Emu3ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.95), eps=1e-6, weight_decay=DECAY, fused=True
    )
    tokens = torch.from_numpy(tokens_of(args.batch, args.length)).long()

    def one():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    said = {"parameters": sum(p.numel() for p in model.parameters()), "torch": torch.__version__}
    return one, said, None


def serve(args, side, dtype, moments):
    """A side's process: answers a number of steps with what they took."""
    size = SIZES[args.config]
    one, said, _ = theirs(args, dtype, size) if side == "theirs" else ours(args, dtype, moments, size)

    def steps(count):
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(count):
            loss = one()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return {"seconds": seconds, "cpu_seconds": cpu, "loss": loss, "peak_gib": after.ru_maxrss / 2**20}

    one()
    child.serve(said, steps)


class Side:
    """A side's process, seen from here."""

    def __init__(self, args, side, dtype, moments):
        self.name = side if side == "theirs" else f"ours, {moments} moments"
        python = sys.executable if side == "theirs" else args.worker
        options = [f"--{k}={getattr(args, k)}" for k in ("batch", "length", "chunk", "config", "attention")]
        self.process = child.Child(python, __file__, f"--serve={side},{dtype},{moments}", *options)
        self.rates, self.cpu_rates, self.last = [], [], {}

    def block(self, args):
        self.last = self.process(args.steps)
        tokens = args.steps * args.batch * args.length
        self.rates.append(tokens / self.last["seconds"])
        self.cpu_rates.append(tokens / self.last["cpu_seconds"])
        row = {"tokens_per_second": round(self.rates[-1], 1), "tokens_per_cpu_second": round(self.cpu_rates[-1], 1)}
        return {"side": self.name, **row, "loss": round(self.last["loss"], 4)}


def compare(args, dtype):
    wanted = [("theirs", "float32"), ("ours", "float32"), ("ours", "bfloat16")]
    sides = [Side(args, side, dtype, moments) for side, moments in wanted]
    for index in range(args.blocks):
        for side in sides:
            print(json.dumps({"products": dtype, "block": index, **side.block(args)}), flush=True)
    peer = sides[0]
    row = {"products": dtype, "batch": args.batch, "length": args.length, "dropout": 0}
    for side in sides:
        row[side.name] = {
            "tokens_per_second": round(statistics.median(side.rates), 1),
            "tokens_per_cpu_second": round(statistics.median(side.cpu_rates), 1),
            "peak_gib": round(side.last["peak_gib"], 2),
            **side.process.hello,
        }
        if side is not peer:
            ratios = [a / b for a, b in zip(side.rates, peer.rates, strict=True)]
            row[side.name]["speed_ratio"] = round(statistics.median(ratios), 2)
            ratios = [a / b for a, b in zip(side.cpu_rates, peer.cpu_rates, strict=True)]
            row[side.name]["speed_ratio_by_cpu_time"] = round(statistics.median(ratios), 2)
            row[side.name]["memory_ratio"] = round(side.last["peak_gib"] / peer.last["peak_gib"], 2)
    print(json.dumps(row), flush=True)
    for side in sides:
        side.process.close()


def accelerator(args):
    """Ours alone: a row with tokens a second, MFU, peak device memory so far."""
    import jax

    from progemu_jax.devices import accelerators
    from progemu_jax.models import transformer

    one, said, model = ours(args, "bfloat16", "bfloat16", SIZES[args.config])
    one()
    start = time.perf_counter()
    for _ in range(args.steps * args.blocks):
        one()
    rate = args.steps * args.blocks * args.batch * args.length / (time.perf_counter() - start)
    flops = transformer.training_flops(model, args.length)
    peak = accelerators.peak_flops()
    row = {"config": args.config, "batch": args.batch, "length": args.length, **said, "tokens_per_second": round(rate)}
    row["mfu"] = round(rate * flops / (peak * jax.device_count()), 3) if peak else None
    return row | {"attention": args.attention, "device_memory_gib": accelerators.memory_gib()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("blocks", 3), ("steps", 2), ("batch", 0), ("length", 0), ("chunk", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--config", choices=sorted(SIZES), default="small")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--products", default="float32,bfloat16")
    parser.add_argument("--worker", default=sys.executable)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    small = args.config == "small"
    args.batch, args.length = args.batch or (2 if small else 1), args.length or (640 if small else 9216)
    if not small:
        args.chunk = args.chunk or 1024
    if args.serve:
        serve(args, *args.serve.split(","))
    elif small:
        for dtype in args.products.split(","):
            compare(args, dtype)
    else:
        print(json.dumps(accelerator(args)))


if __name__ == "__main__":
    main()
