"""Passes of drafted decoding on a trained run's held-out cases, against plain decoding; prints JSON lines.

    .venv/bin/python benchmarks/speculation.py --run=runs/phantom [--cases=32] [--batch=0] [--rounds=3]
        [--windows=8,16,74] [--guidance=1,3] [--kinds=jacobi/gumbel,...]

Cases of the split that the run samples, at the run's batch size, image alone (no text). A row for each policy (the
run's own, and temperature 1 with top-k 2048; both at guidance 1 and 3), draft, coupling and window: mean passes an
image beside plain decoding's (one a code), their ratio; seconds of a batch of both, in turn in one process, median of
the rounds, and the ratio; and the share of images that equal plain decoding's, which is 1 for "gumbel". A batch ends
with its slowest case: `passes_batch` is what its time goes by.
"""

import argparse
import dataclasses
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

KINDS = (
    ("prior", "gumbel"),
    ("prior", "maximal"),
    ("jacobi", "gumbel"),
    ("jacobi", "maximal"),
    ("jacobi", "independent"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--cases", type=int, default=32)
    parser.add_argument("--batch", type=int, default=0, help="cases at a time; 0: the run's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", default="8,16,74", help="tokens of a pass")
    parser.add_argument("--guidance", default="1,3")
    parser.add_argument("--kinds", default=",".join("/".join(kind) for kind in KINDS), help="draft/coupling, ...")
    args = parser.parse_args()

    import jax
    import numpy as np

    import progemu_jax
    from progemu_jax.data import batches
    from progemu_jax.files.settings import from_dict
    from progemu_jax.sampling.generate import generate
    from progemu_jax.sampling.policy import Sampling
    from progemu_jax.sampling.prompts import pad_prompts

    model = progemu_jax.load(args.run)
    settings = json.loads((Path(args.run) / "config.json").read_text())["sample"]
    source = batches.examples(Path(args.run) / "data/shards", "tokens", settings["split"])
    order = np.random.default_rng(0).permutation(len(source))[: args.cases]
    cases = [source[int(i)] for i in order]
    size = min(args.batch or settings["batch_size"], len(cases))
    groups = [cases[i : i + size] for i in range(0, len(cases) - size + 1, size)]

    def pack(policy, group, slots=None):
        priors, texts = [c["prior"] for c in group], [c["prompt"] for c in group]
        return pad_prompts(model.vocabulary, model.layout, priors, texts, policy=policy, slots=slots)

    own = from_dict(Sampling, settings["policy"], "policy")
    slots = pack(own, cases).tokens.shape[1]

    def batch(policy, index, group):
        prompts = pack(policy, group, slots)
        return prompts, jax.vmap(jax.random.key)(np.arange(len(group), dtype=np.uint32) + index * size)

    def run(policy, inputs):
        start = time.perf_counter()
        outs = [
            jax.block_until_ready(generate(*model.prepared(), model.layout, model.grammar, policy, *x, text=False))
            for x in inputs
        ]
        seconds = (time.perf_counter() - start) / len(inputs)
        codes, passes = (np.stack([np.asarray(getattr(out, name)) for out in outs]) for name in ("codes", "passes"))
        return seconds, codes, passes

    wide = dataclasses.replace(own, temperature=1.0, top_k=2048)
    for name, policy in (("run's", own), ("temperature 1", wide)):
        for guidance in map(float, args.guidance.split(",")):
            plain = dataclasses.replace(policy, guidance=guidance, draft="none")
            inputs = [batch(plain, *pair) for pair in enumerate(groups)]
            run(plain, inputs)
            for draft, coupling in (kind.split("/") for kind in args.kinds.split(",")):
                for window in map(int, args.windows.split(",")):
                    fast = dataclasses.replace(plain, draft=draft, coupling=coupling, window=window)
                    run(fast, inputs)
                    rounds = [(run(plain, inputs), run(fast, inputs)) for _ in range(args.rounds)]
                    (_, codes, passes), (_, fast_codes, fast_passes) = rounds[0]
                    before, after = (float(np.median([r[i][0] for r in rounds])) for i in (0, 1))
                    row = {
                        "policy": name,
                        "temperature": plain.temperature,
                        "top_k": plain.top_k,
                        "guidance": guidance,
                        "draft": draft,
                        "coupling": coupling,
                        "window": window,
                        "cases": fast_passes.size,
                        "batch": size,
                        "passes_plain": float(passes.mean()),
                        "passes": round(float(fast_passes.mean()), 2),
                        "ratio": round(float(passes.mean() / fast_passes.mean()), 2),
                        "passes_batch": float(fast_passes.max(axis=1).mean()),
                        "seconds_plain": round(before, 4),
                        "seconds": round(after, 4),
                        "ratio_seconds": round(before / after, 2),
                        "equal_images": float((codes == fast_codes).all(axis=(2, 3)).mean()),
                    }
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
