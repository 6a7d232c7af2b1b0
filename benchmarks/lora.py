"""LoRA against a full fine-tune on the phantom, or on a base of 4 bits against one in bfloat16; prints JSON lines.

    python benchmarks/lora.py --run=runs/phantom [--steps=200] [--rank=8] [--part=nf4]

The trained model of a phantom run meets another kind of picture: its pairs mirrored, codes from right to left and the
words "left" and "right" exchanged. It is fine-tuned on mirrored training pairs, fully and with LoRA, with the same
batches, and the run's own loss is taken on all mirrored validation pairs. Learning rates: the full fine-tune has the
best of --rates, and so has LoRA. The last row compares: validation loss, bytes of optimizer state, and the largest
difference of the logits of the merged export and of the adapter: as they are computed, and with the same float32
weights in float64, which is what merging costs.

With --part=nf4 both fine-tunes are LoRA's, with the best of --lora-rates each: on the run's weights in bfloat16, and in
4 bits (`config.progemu.model.lora_base`). The last row compares validation losses, the bytes of what is frozen, and the
loss before the first step.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2 --xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from progemu_jax.checkpoints import export
from progemu_jax.config import Config
from progemu_jax.data import batches
from progemu_jax.devices import sharding
from progemu_jax.files.settings import from_dict
from progemu_jax.inference.image_tokenizer import Tokenizer
from progemu_jax.models import transformer
from progemu_jax.models.transformer import Transformer
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.systems.progemu.model_config import model_parts
from progemu_jax.tasks import lora
from progemu_jax.tasks.progemu import ProgEmuTask, packer


def mirror(example):
    swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    out = {**example, **{k: np.ascontiguousarray(example[k][:, ::-1]) for k in ("prior", "followup")}}
    for name in ("prompt", "interpretation"):
        out[name] = re.sub(r"\b(left|right|Left|Right)\b", lambda m: swap[m[1]], example[name])
    return out


class Tuning:
    """One fine-tune: task, data and final parameters."""

    def __init__(self, args, config, rank, rate, **model):
        model = dataclasses.replace(config.model, lora_rank=rank, lora_alpha=2.0 * rank, **model)
        config = dataclasses.replace(config, model=model)
        run = Path(args.run)
        coder = Tokenizer.load(run / "tokenizer/export")
        codebook = np.asarray(coder.variables["params"]["quantize"]["embedding"])
        start = open_folder(str(run), "language_model", config.model)
        words, layout, self.model = start.vocabulary, args.layout, start.model
        train = dataclasses.replace(
            config.stage2, steps=args.steps, learning_rate=rate, final_learning_rate=rate / 20, warmup_steps=10
        )
        self.task = ProgEmuTask(self.model, config.task, train, words.visual_start, codebook)
        self.mesh, self.shards, self.train, self.rank, self.rate = (
            sharding.make_mesh(),
            run / "data/shards",
            train,
            rank,
            rate,
        )
        packs = {on: packer(words, layout, config.task, codebook, train=on) for on in (True, False)}
        self.pack = {on: (lambda e, rng, on=on: packs[on](mirror(e), rng)) for on in packs}
        self.params = lora.based(start.variables(), self.model)

    def batches(self, split, on, repeat):
        return batches.example_batches(
            self.shards, "tokens", split, self.train.batch_size, 0, transform=self.pack[on], repeat=repeat
        )

    def evaluate(self, state):
        total, weight = 0.0, 0.0
        for batch in self.batches("validation", False, False):
            found = self.eval_step(state, batch)
            total, weight = total + float(found["loss"]) * float(found["weight"]), weight + float(found["weight"])
        return total / weight

    def __call__(self):
        abstract = jax.eval_shape(self.task.from_params, self.params)
        shardings = self.task.state_shardings(self.mesh, abstract)
        state = jax.jit(self.task.from_params, out_shardings=shardings)(self.params)
        self.task.mesh = self.mesh.abstract_mesh
        step = jax.jit(self.task.train_step, donate_argnums=0, out_shardings=(shardings, None))
        self.task_eval = jax.jit(lambda s, b: self.task.eval_step(s, b))
        self.eval_step = self.task_eval
        before = self.evaluate(state)
        source = self.batches("train", True, True)
        for index in tqdm(range(self.train.steps), f"rank {self.rank}, rate {self.rate}", mininterval=20):
            batch = jax.device_put(next(source), sharding.batch_sharding(self.mesh))
            state, _ = step(state, batch, jax.random.key(index))
        row = {
            "fine_tune": f"LoRA, rank {self.rank}" if self.rank else "full",
            "base": f"{self.model.lora_base} {self.model.param_dtype}",
            "learning_rate": self.rate,
            "steps": self.train.steps,
            "validation_loss_before": round(before, 4),
            "validation_loss": round(self.evaluate(state), 4),
            "frozen_bytes": sum(x.nbytes for x in jax.tree.leaves(state.get("frozen", {}))),
            "optimizer_bytes": sum(x.nbytes for x in jax.tree.leaves(state["opt_state"])),
            "trained_parameters": sum(x.size for x in jax.tree.leaves(state["params"])),
        }
        print(json.dumps(row), flush=True)
        self.params = jax.device_get(self.task.params(state))
        return row

    def merged_difference(self):
        """Largest difference of logits, the adapter's against the merged export's."""
        batch = next(iter(self.batches("validation", False, False)))
        merged, plain = lora.merge(self.params, self.model)
        with tempfile.TemporaryDirectory() as folder:
            export.export(merged, {}, f"{folder}/export")
            merged = export.load_export(f"{folder}/export")[0]

        def logits(params, model):
            hidden, _ = Transformer(model).apply(
                {"params": params}, batch["tokens"], batch["positions"], aligned=batch["aligned"]
            )
            return np.asarray(transformer.logits(params, hidden))

        one, two = logits(self.params, self.model), logits(merged, plain)
        with in_float64():
            wide = [jax.tree.map(lambda x: np.asarray(x, np.float64), tree) for tree in (self.params, merged)]
            models = [dataclasses.replace(m, dtype="float64", param_dtype="float64") for m in (self.model, plain)]
            exact, exact_merged = map(logits, wide, models)
        assert exact.dtype == exact_merged.dtype == np.float64

        def apart(x, y):
            return float(np.abs(np.asarray(x, np.float64) - y).max())

        return {
            "merged_logit_difference": apart(one, two),
            "the_same_weights_in_float64": apart(exact, exact_merged),
            "float32_error_of_the_adapter": apart(one, exact),
            "float32_error_of_the_merged": apart(two, exact_merged),
            "largest_logit": float(np.abs(one).max()),
        }


@contextlib.contextmanager
def in_float64():
    """Model code that is called within computes in float64, also where it says float32."""
    with jax.enable_x64(True), mock.patch.object(jnp, "float32", jnp.float64):
        yield


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rates", default="1e-3", help="of the full fine-tune")
    parser.add_argument("--lora-rates", default="4e-3")
    parser.add_argument("--part", choices=("full", "nf4"), default="full", help="what LoRA is compared with")
    args = parser.parse_args()
    config = from_dict(Config, json.loads((Path(args.run) / "config.json").read_text()))
    args.layout = model_parts(config)[1]

    def best(rates, rank, **model):
        """(row, fine-tune) of the rate with the lowest validation loss."""
        found = [
            (tuning(), tuning) for tuning in (Tuning(args, config.progemu, rank, float(r), **model) for r in rates)
        ]
        return min(found, key=lambda pair: pair[0]["validation_loss"])

    rates, lora_rates = args.rates.split(","), args.lora_rates.split(",")
    if args.part == "nf4":
        (whole, _), (small, _) = (
            best(lora_rates, args.rank, param_dtype="bfloat16", lora_base=base) for base in ("full", "nf4")
        )
        result = {
            "validation_loss_difference": round(small["validation_loss"] - whole["validation_loss"], 4),
            "before": round(small["validation_loss_before"] - whole["validation_loss_before"], 4),
            "frozen_bytes_ratio": round(small["frozen_bytes"] / whole["frozen_bytes"], 4),
        }
    else:
        (full, _), (ours, tuning) = best(rates, 0), best(lora_rates, args.rank)
        result = {
            "validation_loss_ratio": round(ours["validation_loss"] / full["validation_loss"], 4),
            "optimizer_memory_ratio": round(ours["optimizer_bytes"] / full["optimizer_bytes"], 4),
            **tuning.merged_difference(),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
