"""Cases through a queue beside the same cases batch by batch, as a run's stage `sample` draws them; prints JSON lines.

    .venv/bin/python benchmarks/queued.py [--model=phantom] [--patients=48] [--batch=32] [--devices=1] [--rounds=3]
        [--drafts=none,jacobi]

Held-out phantom patients, one future each, image and text. A line for each kind of drafts: seconds of both ways, in
turn in one process, medians of the rounds, and those on the processor; the share of images and of texts that are equal;
tokens of the texts. Both are compiled before.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--patients", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--drafts", default="none,jacobi")
    args = parser.parse_args()
    if args.devices > 1:
        flag = f"--xla_force_host_platform_device_count={args.devices}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()

    import numpy as np

    import progemu_jax
    from progemu_jax.devices import sharding
    from progemu_jax.files.predictions import Case
    from progemu_jax.gallery.cases import held_out

    model = progemu_jax.load(args.model)
    if args.devices > 1:
        model.on(sharding.make_mesh())
    side = model.layout.height * model.tokenizer.config.factor
    with tempfile.TemporaryDirectory() as folder:
        found = held_out(Path(folder), args.patients, 2 * side, side)
    priors = model.tokenize(np.stack([case.prior for case in found]))
    cases = [Case(x.pair_id, codes, x.prompt, 0, x.prior) for x, codes in zip(found, priors, strict=True)]
    batches = [cases[i : i + args.batch] for i in range(0, len(cases), args.batch)]

    def by_batch(policy):
        for batch in batches:
            made = model.sample(batch + batch[:1] * (args.batch - len(batch)), 0, policy)
            yield from list(zip(made.images, made.texts, strict=True))[: len(batch)]

    def queued(policy):
        for batch in model.sample_queued(batches, 0, policy, slots=args.batch):
            yield from ((made.image, made.text) for made in batch)

    ways = {"batches": by_batch, "queue": queued}
    for draft in args.drafts.split(","):
        policy = dataclasses.replace(model.policy, draft=draft)
        out = {name: list(way(policy)) for name, way in ways.items()}
        taken = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, way in ways.items():
                start = time.perf_counter(), time.process_time()
                list(way(policy))
                taken[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
        pairs = list(zip(out["batches"], out["queue"], strict=True))
        lengths = [len(model.vocabulary.encode(text)) for _, text in out["queue"]]
        row = {"draft": draft, "cases": len(cases), "batch": args.batch, "devices": args.devices}
        for name, times in taken.items():
            seconds, cpu = (statistics.median(x) for x in zip(*times, strict=True))
            row |= {f"{name}_s": round(seconds, 2), f"{name}_cpu_s": round(cpu, 2)}
        row["images_equal"] = round(float(np.mean([(a[0] == b[0]).all() for a, b in pairs])), 3)
        row["texts_equal"] = round(float(np.mean([a[1] == b[1] for a, b in pairs])), 3)
        row["text_tokens"] = [min(lengths), round(statistics.mean(lengths), 1), max(lengths)]
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
