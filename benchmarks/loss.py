"""Memory of the loss at Emu3's full length by the compiler's own account; prints JSON lines. Nothing is run.

    python benchmarks/loss.py [--tokens=9216] [--vocabulary=184622] [--hidden=512]

Cross-entropy of [1, tokens, hidden] against a head [vocabulary, hidden], with the gradients of both, in float32: with
all logits at once, and as training does it (`losses.head_cross_entropy`). Temporaries are what is held beside inputs
and results. The same value and gradients: tests/kernels/test_head_loss.py.
"""

import argparse
import json
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp

from progemu_jax.kernels import head_loss
from progemu_jax.tasks.progemu import ProgEmuConfig
from progemu_jax.training import losses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("tokens", 9216), ("vocabulary", 184_622), ("hidden", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    chunk = ProgEmuConfig().loss_chunk

    def whole(hidden, table, ids, weights):
        return losses.cross_entropy(jnp.einsum("BTD,VD->BTV", hidden, table), ids, weights)[0]

    def blocks(hidden, table, ids, weights):
        return head_loss.head_cross_entropy(hidden, table, ids, weights, chunk=chunk)[0]

    shapes = ((1, args.tokens, args.hidden), (args.vocabulary, args.hidden), (1, args.tokens), (1, args.tokens))
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.float32)
    inputs = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
    held = {}
    for name, loss in (("all logits", whole), ("training", blocks)):
        memory = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile().memory_analysis()
        # What is held at once: temporaries and the gradients, which are results.
        held[name] = memory.temp_size_in_bytes + memory.output_size_in_bytes
        row = {"loss": name, "temporaries_mb": round(memory.temp_size_in_bytes / 1e6)}
        print(json.dumps({**row, "with_gradients_mb": round(held[name] / 1e6)}), flush=True)
    ratio = round(held["training"] / held["all logits"], 4)
    print(json.dumps({"tokens": args.tokens, "vocabulary": args.vocabulary, "chunk": chunk, "ratio": ratio}))


if __name__ == "__main__":
    main()
