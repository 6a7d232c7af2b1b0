"""The standing case of benchmarks/decode.py beside `transformers`' Emu3, on the device: weights, callback, turns."""

import importlib.util
import tempfile
import time

import decode
import jax

from gpu_parts import tools

SMALL = decode.Case(
    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
    max_position_embeddings=128, side=3, text=4, top_k=16,
)  # fmt: skip
ROUNDS = 4


def peer(run):
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        return run.say(skipped=f"{' and '.join(missing)} not installed")

    import torch

    gpu = jax.default_backend() == "gpu"
    if gpu and not torch.cuda.is_available():
        return run.say(skipped="JAX sees a GPU, torch does not")
    case, chosen = (SMALL, decode.OURS[1:3]) if run.small else (decode.STANDING, decode.OURS)
    speed = tools.bandwidth() or tools.copy_bandwidth(1 << 16)
    run.say(case=case.tokens, torch=torch.__version__, memory_bytes_per_second=speed)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = decode.peer_model(folder, case)
        ours, theirs = decode.Ours(folder, case), decode.Peer(model, case, "cuda" if gpu else "cpu")
        comparison = decode.Comparison(case, ours, theirs, chosen, speed, run.say)
        ready = tools.at_once(run, {row[0]: lambda row=row: comparison.warm_ours(row) for row in chosen})
        comparison.chosen = [row for row in chosen if row[0] in ready]
        comparison.warm = True
        comparison.warm_peer()
        for index in range(1 if run.small else ROUNDS):
            began = time.time()
            comparison.round(index)
            comparison.summary()
            if run.left() < 1.5 * (time.time() - began):
                break
        if run.small or run.left() > 40:
            comparison.check_greedy()
