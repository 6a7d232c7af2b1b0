"""The task of anti-diagonal decoding: its head, and the backbone with it, learn what the row order draws.

What a code is drawn from in the row order is the teacher's distribution, a softmax over all codes, at each place of a
real follow-up; what the diagonal order makes of the same codes learns it (Hinton et al. 2015, arXiv 1503.02531). So a
model that was taught preferences keeps them, and little training goes far: a row of 256 codes says 256 distributions.

First the head alone is trained, on the model as it is. A model that knows the row order alone misses context here,
for it never saw an image whose upper rows end in the middle; so then all of it is (`DiagonalConfig.whole`), on both
orders, with the model before as the teacher of both: the row order stays what it was as far as it can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.models import diagonal_head, transformer
from progemu_jax.tasks.progemu import ProgEmuTask
from progemu_jax.text.diagonals import in_diagonals
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.text.vocabulary import Vocabulary
from progemu_jax.training import optim
from progemu_jax.training.loop import TrainConfig

TEACHER, DIAGONAL = "teacher", "diagonal_"  # among a state's frozen parameters; in front of names of a batch


@dataclass(frozen=True)
class DiagonalConfig:
    """The trainings for `Sampling.mode="diagonal"`, the last ones of a run; steps=0 skips one, and without `head` there
    is no such mode.

    Attributes:
      head: of the head alone; the row order stays as it is, to the bit.
      whole: of the head and all else.
      text: weight of the text's cross-entropy.
    """

    head: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))
    whole: TrainConfig = field(default_factory=lambda: TrainConfig(steps=0))
    text: float = 0.2

    def __post_init__(self):
        if self.whole.steps and not self.head.steps:
            raise ValueError("whole.steps: the head is trained first; give head.steps too")
        if not self.text >= 0:
            raise ValueError(f"text={self.text}: expected a number of at least 0")


def packer(
    pack: Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]], layout: Layout
) -> Callable[[dict[str, Any], np.random.Generator], dict[str, np.ndarray]]:
    """Rows of `tasks.progemu.packer` in both orders: the other one's arrays have `DIAGONAL` in front of their names.

    `diagonal_of`, int32 [length], is the index in the row order of each token of the other.
    """

    def transform(example: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        row = pack(example, rng)
        indexed = {**row, "of": np.arange(layout.length, dtype=np.int32)}
        return row | {DIAGONAL + name: values for name, values in in_diagonals(indexed, layout).items()}

    return transform


class DiagonalTask(ProgEmuTask):
    """Batches come from `packer`. whole: all parameters are trained, not the head's alone."""

    name = "diagonal"

    def __init__(
        self, vocab: Vocabulary, layout: Layout, diagonal: DiagonalConfig, whole: bool, *args: Any, **rest: Any
    ):
        super().__init__(*args, **rest)
        self.vocab, self.codes, self.diagonal, self.whole = vocab, layout.height * layout.width, diagonal, whole
        self.tokens_per_step *= 2
        self.flops_per_step *= 3 if whole else 1

    def from_params(self, params: Any) -> dict[str, Any]:
        """The state that starts from a model's parameters, with a fresh head where they have none."""
        if diagonal_head.NAME not in params:
            key = jax.random.key(self.train.seed)
            params = {**params, diagonal_head.NAME: diagonal_head.init_params(self.model_config, key)}
        others = {name: leaf for name, leaf in params.items() if name != diagonal_head.NAME}
        if self.whole:
            trained, frozen = params, {TEACHER: jax.tree.map(jnp.copy, others)}  # a state's buffers are donated
        else:
            trained, frozen = {diagonal_head.NAME: params[diagonal_head.NAME]}, others
        return {**optim.start(self.optimizer, self.train, trained), "frozen": frozen}

    def params(self, state: dict[str, Any]) -> Any:
        return {name: leaf for name, leaf in super().params(state).items() if name != TEACHER}

    def _few_rows(self, trained: Any, tokens: int) -> bool:
        return False

    def _loss(
        self, params: Any, batch: dict[str, jax.Array], key: jax.Array | None, every: bool, embedded: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        other = {name.removeprefix(DIAGONAL): x for name, x in batch.items() if name.startswith(DIAGONAL)}
        teacher = jax.lax.stop_gradient(params.get(TEACHER, params))
        places = jnp.argsort(other["kinds"] != Kind.VISUAL, axis=1, stable=True)[:, : self.codes]

        def at(x: jax.Array) -> jax.Array:
            return jnp.take_along_axis(x, places, axis=1)

        def of_codes(hidden: jax.Array) -> jax.Array:
            """States [B, h w, M] that tell the codes in the row order, of [B, T - 1, M]."""
            return jnp.take_along_axis(hidden, at(other["of"])[..., None] - 1, axis=1)

        taught = of_codes(self._hidden(teacher, batch, None))
        hidden = self._hidden(params, other, key)
        index = (at(other[name]) for name in ("left", "above", "beside"))
        told = diagonal_head.told(self.model_config, params, hidden, *index)
        codes = at(other["tokens"]) - self.vocab.visual_start
        weights = at(other["weights"]) * self.config.weight_visual
        part = self._divergence(params, teacher, told, taught, codes, weights)
        loss, _ = self._text(params, hidden, other)
        metrics = {"loss_visual": part["loss"], "loss_visual_rows": part["loss_taught"], "divergence": part["from"]}
        total = part["weighted"] + self.diagonal.text * loss
        if self.whole:
            in_rows = self._hidden(params, batch, key)
            kept = self._divergence(params, teacher, of_codes(in_rows), taught, codes, weights)
            text, _ = self._text(params, in_rows, batch)
            total += kept["weighted"] + self.diagonal.text * text
            metrics["divergence_rows"] = kept["from"]
        return total, {"weight": weights.sum(), "loss_text": loss, **metrics}

    def _text(self, params: Any, hidden: jax.Array, batch: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        """Cross-entropy of the text alone."""
        text = (batch["kinds"] == Kind.TEXT) | (batch["kinds"] == Kind.EOS)
        return self._cross_entropy(params, hidden, {**batch, "weights": jnp.where(text, batch["weights"], 0)}, False)

    def _divergence(
        self, params: Any, teacher: Any, told: jax.Array, taught: jax.Array, codes: jax.Array, weights: jax.Array
    ) -> dict[str, jax.Array]:
        """Means over codes, of states [B, N, M]: "from", KL(taught || told); "weighted", the same by weights [B, N];
        "loss" and "loss_taught", the cross-entropies of codes int32 [B, N]."""
        first, size = self.vocab.visual_start, self.vocab.codebook_size
        tables = [jax.lax.dynamic_slice_in_dim(transformer.head(p), first, size) for p in (params, teacher)]

        @jax.checkpoint
        def chunk(part: tuple) -> tuple[jax.Array, ...]:
            told, taught, codes = part
            one, two = (
                jax.nn.log_softmax(jnp.einsum("BM,VM->BV", x, table.astype(x.dtype)).astype(jnp.float32))
                for x, table in ((told, tables[0]), (taught, tables[1]))
            )
            own = [-jnp.take_along_axis(x, codes[:, None], axis=1)[:, 0] for x in (one, two)]
            return (jnp.exp(two) * (two - one)).sum(-1), *own

        # A column of codes at a time: all distributions of a large model do not fit.
        columns = (jnp.swapaxes(x, 0, 1) for x in (told, taught, codes))
        apart, own, of_teacher = jax.lax.map(chunk, tuple(columns), batch_size=self.config.loss_chunk)
        weights = weights.T
        mean = {"from": apart, "loss": own, "loss_taught": of_teacher}
        weighted = (apart * weights).sum() / jnp.maximum(weights.sum(), 1e-6)
        return {"weighted": weighted} | {name: x.mean() for name, x in mean.items()}
