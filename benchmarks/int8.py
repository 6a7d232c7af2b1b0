"""What int8 weights do to a run's logits, on held-out pairs at the places of the target's codes; prints one JSON line.

.venv/bin/python benchmarks/int8.py --run=runs/phantom [--cases=16]
"""

import argparse
import json

import jax
import numpy as np

import progemu_jax
from progemu_jax.data import batches
from progemu_jax.models.transformer import Transformer, logits
from progemu_jax.text import sequence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True)
    parser.add_argument("--cases", type=int, default=16)
    args = parser.parse_args()
    model, small = progemu_jax.load(args.run), progemu_jax.load(args.run, quantize="int8")
    source = batches.examples(f"{args.run}/data/shards", "tokens", "test")
    rows = []
    for i in range(min(args.cases, len(source))):
        prior, target = (np.asarray(source[i][side]) for side in ("prior", "followup"))
        prompt, text = source[i]["prompt"], source[i]["interpretation"]
        rows.append(sequence.pack(model.vocabulary, model.layout, prior, prompt, target, text))
    batch = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
    start = model.vocabulary.visual_start
    visual = (start, start + model.vocabulary.codebook_size)

    @jax.jit
    def forward(params):
        hidden, _ = Transformer(model.config).apply(
            {"params": params}, batch["tokens"], batch["positions"], aligned=batch["aligned"],
            segments=batch["kinds"] != 0,
        )  # fmt: skip
        return logits(params, hidden, visual)

    places = batch["kinds"][:, 1:] == sequence.Kind.VISUAL
    whole, light = (np.asarray(forward(m.params))[:, :-1][places] for m in (model, small))
    shares = [np.asarray(jax.nn.softmax(x)) for x in (whole, light)]
    print(json.dumps({
        "places": int(places.sum()),
        "relative_error": float(np.linalg.norm(light - whole) / np.linalg.norm(whole)),
        "largest_error": float(np.abs(light - whole).max()),
        "total_variation": float(np.abs(shares[0] - shares[1]).sum(-1).mean() / 2),
        "same_best_code": float((whole.argmax(-1) == light.argmax(-1)).mean()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
