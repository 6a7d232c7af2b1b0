"""Emu3's image tokenizer against `transformers`' Emu3VQVAE on the same weights; prints JSON lines.

    make bench-vq        # or: .venv-parity/bin/python benchmarks/vq.py [--size=256] [--batch=4] [--ch=64] [--rounds=3]

Both encode and decode still images, in turn, `rounds` times in one process on the same cores. A row a call with the
images a second of both; the last line has the medians, their ratio, and how far the results agree. Random weights with
norms and statistics away from their initial values; warm-up (compilation, thread pools) is not counted.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("size", 256), ("batch", 4), ("ch", 64), ("rounds", 3), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a library that waits leaves the cores to the other
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import jax
    import numpy as np
    import torch
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.emu3_reference import fill, pictures, uniform

    import progemu_jax

    torch.set_num_threads(args.threads)
    vq = fill(Emu3VQVAE(Emu3VQVAEConfig(base_channels=args.ch, hidden_size=4 * args.ch)))
    with tempfile.TemporaryDirectory() as folder:
        vq.save_pretrained(folder)
        ours = progemu_jax.load(folder).tokenizer
    size, side = (args.size, args.size), args.size // 8
    images = pictures(size, args.batch)
    codes = (uniform("codes", (args.batch, side, side)) * 32_768).astype(np.int32)
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2).contiguous()
    sizes, torch_codes = torch.tensor([size] * args.batch), torch.from_numpy(codes.astype(np.int64))
    calls = {
        "encode": {
            "ours": lambda: ours.tokenize(images),
            "transformers": lambda: torch.stack(vq.encode(pixels, sizes).image_tokens).numpy(),
        },
        "decode": {
            "ours": lambda: ours.detokenize(codes, rgb=True),
            "transformers": lambda: vq.decode(torch_codes).numpy(),
        },
    }
    summary = {"size": args.size, "batch": args.batch, "ch": args.ch, "threads": args.threads, "jax": jax.__version__}
    with torch.inference_mode():
        for what, pair in calls.items():
            results = [call() for call in pair.values()]  # warm-up
            rows = measure(what, pair, args.rounds, args.batch)
            for name in pair:
                summary[f"{what}_{name}"] = round(float(np.median([row[name] for row in rows])), 4)
            ratios = [row["ours"] / row["transformers"] for row in rows]
            summary[f"{what}_ratio"] = round(float(np.median(ratios)), 2)
            summary[f"{what}_agreement"] = agreement(what, *results)
    print(json.dumps(summary))


def emit(**row):
    print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def measure(what, sides, rounds, batch, say=emit):
    """A row a round with the images a second of each side; sides: {name: call on a batch of images}."""
    rows = []
    for index in range(rounds):
        row = {"call": what, "round": index}
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            row[name] = batch / (time.perf_counter() - start)
        rows.append(row)
        say(**row)
    return rows


def agreement(what, ours, theirs):
    """Share of equal codes, or the largest difference in gray levels."""
    import numpy as np

    if what == "encode":
        return round(float((ours == theirs.reshape(ours.shape)).mean()), 5)
    theirs = np.clip((theirs.reshape(len(ours), 3, *ours.shape[1:3]).transpose(0, 2, 3, 1) + 1) * 127.5, 0, 255)
    return int(np.abs(ours.astype(int) - theirs.astype(np.uint8)).max())


if __name__ == "__main__":
    main()
