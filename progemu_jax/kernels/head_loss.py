"""Cross-entropy of a head whose logits never exist as a whole, with its gradient in the same pass.

Token n has the state h_n, the target y_n and the weight w_n; the head a row t_v for each id v. With l_nv = h_n . t_v

    log Z_n = log sum_v exp l_nv      nll_n = log Z_n - l_n,y_n      loss = sum_n w_n nll_n

Tokens go through the head in chunks, and the head goes by in blocks of its rows, an online softmax. With L_j the
logits [N, block] of block j, what is carried from block to block (`_Sums`) is

    top_j       = max(top_j-1, max_v L_j)
    total_j     = total_j-1 exp(top_j-1 - top_j) + sum_v exp(L_j - top_j)
    of_target_j = of_target_j-1 + (the target's logit, where block j has it)

and in the end log Z = top + log total. Where the vocabulary is split over devices, each has a top, a total and perhaps
the target of its own rows; their maximum and sums give Z (`scan_logits`).

The slopes d loss / d l_nv = w_n (exp(l_nv - log Z_n) - [v = y_n]) want all of Z first, so they come in a second pass
over the blocks (`slopes`), with two products: d h += slopes_j T_j, d T_j += slopes_j' H. The logits are not computed
again for it: of each block exp(L_j - top_j) is kept, in the dtype of the products, and top_j as it was at that time,

    exp(l - log Z) = kept_j exp(top_j - log Z)

which is N V numbers of one chunk of tokens. They are kept as integers of the dtype's size: XLA's CPU compiler would
widen all of a bfloat16 array to float32 in order to change a part of it.

Soft targets replace [v = y_n] by shares q_nv / sum_v q_nv of the codes that look alike; then sum_v q l and sum_v q are
carried, too (`of_near`, `norm`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal
from jax.sharding import PartitionSpec

from progemu_jax.devices.sharding import RULES, platform
from progemu_jax.kernels import matmul

# Rows of the head at a time; on CPU few enough for what is done to their logits to stay in the cache.
BLOCK, BLOCK_ON_CPU = 8192, 1024


class SoftCodes(NamedTuple):
    """Targets spread over the codes that look alike: q stands for c by exp(-|e_c - e_q|^2 / width), scaled to sum 1.

    on: bool [B, T], the tokens that are learnt so. codebook: f32 [Q, E]. width: squared distance. start: id of code 0.
    """

    on: jax.Array
    codebook: jax.Array
    width: float
    start: int

    def similar(self, codes: jax.Array, others: jax.Array) -> jax.Array:
        """int [N], int [M] -> f32 [N, M]: exp(-|e_c - e_q|^2 / width), 1 for a code and itself."""
        table = jnp.asarray(self.codebook)
        norms = jnp.sum(jnp.square(table), axis=-1)
        cross = jnp.einsum("NE,ME->NM", table[codes], table[others], precision="highest")
        distance = jnp.maximum(norms[codes][:, None] + norms[others] - 2 * cross, 0.0)
        return jnp.exp(-jnp.where(codes[:, None] == others, 0.0, distance) / self.width)


def head_cross_entropy(
    hidden: jax.Array,
    table: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    *,
    chunk: int,
    counted: jax.Array | None = None,
    vocab_size: int | None = None,
    soft: SoftCodes | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted mean cross-entropy of a head, the [B, T, V] logits of which never exist.

    `chunk` tokens of each row go through the head at a time. Where a gradient is wanted it is made in the same pass
    (three products with the head, not four): d loss / d logits is at hand with the logits. Tokens that are not
    counted are left out before, not masked after: they cost nothing. On a mesh (`jax.sharding.use_abstract_mesh`) each
    device has its rows and its part of the vocabulary, and the gradient of the table is summed once.

    Args:
      hidden: float [B, T, D]. The products are in its dtype, with sums in float32.
      table: float [V, D], the head.
      targets: int [B, T]; ignored (any value) where the weight is 0.
      weights: float [B, T] >= 0, of the loss.
      counted: bool [B, T]: whose cross-entropy is wanted; None: where the weight is positive.
      vocab_size: ids from this on are padding of the table, and impossible.
      soft: what is learnt of some tokens in place of their target.

    Returns:
      (loss, nll): float32 scalar, and float32 [B, T] without gradient: each counted token's exact cross-entropy (soft
      or not), 0 elsewhere. With no weight at all the loss is 0.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    weights = weights.astype(jnp.float32)
    counted = weights > 0 if counted is None else counted | (weights > 0)
    length = targets.shape[1]
    chunk = min(chunk, length)
    # Counted tokens first, in each row by itself: rows may lie on different devices.
    back = _counted_first(counted)
    places = jnp.arange(length, dtype=jnp.int32)
    order = jax.vmap(lambda to: jnp.zeros_like(to).at[to].set(places, unique_indices=True))(back)
    pad = [(0, 0), (0, -length % chunk)]

    def first(x: jax.Array) -> jax.Array:
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        return jnp.pad(x, pad + [(0, 0)] * (x.ndim - 2))

    # Scaled before, so that the gradient needs no further pass over all of the table's.
    total = weights.sum()
    weights = weights / jnp.where(total > 0, total, 1.0)
    items = {"target": jnp.where(counted, targets, 0), "weight": weights, "counted": counted}
    if soft is not None:
        items["soft"] = soft.on
    loss, nll = _Head(chunk, vocab_size, soft and soft._replace(on=None))(
        first(hidden), table, {name: first(x) for name, x in items.items()}
    )
    return loss, jax.lax.stop_gradient(jnp.take_along_axis(nll[:, :length], back, axis=1))


def _counted_first(counted: jax.Array) -> jax.Array:
    """bool [B, T] -> int32 [B, T]: where each token goes when those that count are put first, in order.

    By counting: sorts take long to compile for a TPU.
    """
    ahead = jnp.cumsum(counted, axis=1, dtype=jnp.int32)
    return jnp.where(counted, ahead - 1, ahead[:, -1:] + jnp.arange(counted.shape[1], dtype=jnp.int32) - ahead)


class _Part(NamedTuple):
    """The rows of the head that one device has.

    table: [v, D]. dtype: of the products. first_id: id of its first row. block: rows at a time. vocab_size, soft: see
    `head_cross_entropy`. ids: mesh axes that the vocabulary is split over, or ().
    """

    table: jax.Array
    dtype: jnp.dtype
    first_id: jax.Array | int
    block: int
    vocab_size: int | None
    soft: SoftCodes | None
    ids: tuple[str, ...]

    @property
    def blocks(self) -> int:
        return -(-len(self.table) // self.block)

    def over_ids(self, reduce: Callable[..., jax.Array], x: jax.Array) -> jax.Array:
        """x of all parts of the vocabulary, reduced."""
        return reduce(x, self.ids) if self.ids else x

    def rows(self, j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Block j: first row, its rows [block, D], bool [block]: ids that count."""
        count = len(self.table)
        start = jnp.minimum(j * self.block, count - self.block)  # the last block reaches back; what it has twice is out
        local = start + jnp.arange(self.block)
        known, names = local >= j * self.block, self.first_id + local
        if self.vocab_size is not None:
            known &= names < self.vocab_size
        return start, jax.lax.dynamic_slice_in_dim(self.table, start, self.block).astype(self.dtype), known

    def with_near(
        self, start: jax.Array, known: jax.Array, targets: jax.Array, near: Callable[[jax.Array], Any], without: Any
    ) -> Any:
        """near(f32 [N, block]: exp(-|e_t - e_c|^2 / width) of targets [N] and a block's codes, 0 of other ids).

        What a block without any code has is `without`: of a vocabulary most blocks have none, and this is dear.
        """
        if self.soft is None:
            return without
        count = len(self.soft.codebook)
        codes = self.first_id + start + jnp.arange(self.block) - self.soft.start
        here = (codes >= 0) & (codes < count) & known

        def shares() -> Any:
            similar = self.soft.similar(*(jnp.clip(x, 0, count - 1) for x in (targets - self.soft.start, codes)))
            return near(jnp.where(here, similar, 0.0))

        return jax.lax.cond(here.any(), shares, lambda: without)


class _Tokens(NamedTuple):
    """A chunk of N tokens: states [N, D], `matmul.transposed` of them; [N]: target's id and row here, weight, flags."""

    states: jax.Array
    columns: jax.Array | None
    target: jax.Array
    row: jax.Array
    weight: jax.Array
    counted: jax.Array
    soft: jax.Array | None


class _Sums(NamedTuple):
    """What is carried over the blocks, f32 [N] each, and kept: (bits [blocks, N, block], tops [blocks, N]), or None."""

    top: jax.Array
    total: jax.Array
    of_target: jax.Array
    of_near: jax.Array
    norm: jax.Array
    kept: tuple[jax.Array, jax.Array] | None


def scan_logits(part: _Part, tokens: _Tokens, with_gradient: bool) -> tuple[jax.Array, jax.Array, _Sums]:
    """(log Z [N], nll [N], sums) of a chunk of tokens, over all blocks."""

    def one(j: jax.Array, sums: _Sums) -> _Sums:
        top, total, of_target, of_near, norm, kept = sums
        start, head, known = part.rows(j)
        logits = jnp.einsum("ND,VD->NV", tokens.states, head, preferred_element_type=jnp.float32)
        logits = jnp.where(known, logits, -1e30)
        new_top = jnp.maximum(top, logits.max(-1))
        shares = jnp.exp(logits - new_top[:, None])
        if kept is not None:  # once for both uses: this is the dearest of the element-wise work
            shares = jax.lax.optimization_barrier(shares)
            bits = jax.lax.bitcast_convert_type(shares.astype(part.dtype), kept[0].dtype)[None]
            kept = (
                jax.lax.dynamic_update_slice_in_dim(kept[0], bits, j, 0),
                jax.lax.dynamic_update_slice_in_dim(kept[1], new_top[None], j, 0),
            )
        total = total * jnp.exp(top - new_top) + shares.sum(-1)
        here = (tokens.row >= j * part.block) & (tokens.row < start + part.block)
        place = jnp.clip(tokens.row - start, 0, part.block - 1)
        of_target += jnp.where(here, jnp.take_along_axis(logits, place[:, None], 1)[:, 0], 0.0)
        more, share = part.with_near(
            start, known, tokens.target, lambda x: ((x * logits).sum(-1), x.sum(-1)), (zero, zero)
        )
        of_near, norm = of_near + more, norm + share
        return _Sums(new_top, total, of_target, of_near, norm, kept)

    count = len(tokens.states)
    zero, kept = jnp.zeros(count, jnp.float32), None
    if with_gradient:
        bits = jnp.uint16 if part.dtype.itemsize == 2 else jnp.uint32
        kept = (jnp.zeros((part.blocks, count, part.block), bits), jnp.zeros((part.blocks, count), jnp.float32))
    sums = _Sums(jnp.full(count, -jnp.inf), zero, zero, zero, zero, kept)
    sums = jax.lax.fori_loop(0, part.blocks, one, sums)
    highest = part.over_ids(jax.lax.pmax, sums.top)
    log_z = highest + jnp.log(part.over_ids(jax.lax.psum, sums.total * jnp.exp(sums.top - highest)))
    return log_z, log_z - part.over_ids(jax.lax.psum, sums.of_target), sums


def slopes(
    part: _Part, tokens: _Tokens, sums: _Sums, log_z: jax.Array, norm: jax.Array, d_table: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """(d loss / d states [N, D], of this device's rows alone; d_table f32 [v, D] with that of the chunk added)."""

    def one(j: jax.Array, carry: tuple) -> tuple:
        back, d_table = carry
        start, head, known = part.rows(j)
        wanted = (start + jnp.arange(part.block) == tokens.row[:, None]).astype(jnp.float32)
        wanted = part.with_near(
            start, known, tokens.target, lambda x: jnp.where(tokens.soft[:, None], x / norm[:, None], wanted), wanted
        )
        shares = jax.lax.bitcast_convert_type(sums.kept[0][j], part.dtype).astype(jnp.float32)
        shares = shares * jnp.exp(sums.kept[1][j] - log_z)[:, None]
        slope = jnp.where((tokens.weight > 0)[:, None] & known, tokens.weight[:, None] * (shares - wanted), 0.0)
        slope = jax.lax.optimization_barrier(slope.astype(part.dtype))  # once for both products
        back += jnp.einsum("NV,VD->ND", slope, head, preferred_element_type=jnp.float32)
        if d_table is None:
            return back, None
        more = matmul.outer(slope, tokens.states, tokens.columns)
        so_far = jax.lax.dynamic_slice_in_dim(d_table, start, part.block)
        return back, jax.lax.dynamic_update_slice_in_dim(d_table, so_far + more, start, 0)

    zeros = jnp.zeros(tokens.states.shape, jnp.float32)
    return jax.lax.fori_loop(0, part.blocks, one, (zeros, d_table))


def _even_block(count: int, most: int) -> int:
    """Rows of a block, at most `most`, so that the blocks of `count` rows overlap little; a multiple of 64."""
    blocks, unit = -(-count // most), min(64, most)
    return min(count, -(-count // (unit * blocks)) * unit)


class _Head(NamedTuple):
    """(hidden [B, T, D], table [V, D], items of [B, T]) -> (sum of weighted losses, nll [B, T]); T divides by chunk."""

    chunk: int
    vocab_size: int | None
    soft: SoftCodes | None

    def __call__(self, hidden: jax.Array, table: jax.Array, items: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        @jax.custom_vjp
        def total(hidden: jax.Array, table: jax.Array) -> tuple:
            return self._over_mesh(hidden, table, items, 0)

        def forward(hidden: CustomVJPPrimal, table: CustomVJPPrimal) -> tuple:
            # A head that is not trained has no gradient: it would be a table in float32, and a third of the work.
            loss, nll, *gradients = self._over_mesh(hidden.value, table.value, items, 1 + table.perturbed)
            return (loss, nll), gradients

        def backward(gradients: list[jax.Array], cotangents: tuple[jax.Array, jax.Array]) -> tuple:
            d_hidden, *d_table = ((g * cotangents[0]).astype(g.dtype) for g in gradients)
            return d_hidden, *(d_table or [None])

        total.defvjp(forward, backward, symbolic_zeros=True)
        return total(hidden, table)

    def _over_mesh(
        self, hidden: jax.Array, table: jax.Array, items: dict[str, jax.Array], gradients: int
    ) -> tuple[jax.Array, ...]:
        """(loss, nll, and gradients: 1, of hidden; 2, of the table, too); on a mesh, each device its rows and ids."""
        most = jnp.max(jnp.sum(items["counted"], axis=1))
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return self._on_device(hidden, table, items, most, gradients, (), (), ())
        sizes = dict(mesh.shape)

        def axes(name: str, size: int) -> tuple[str, ...]:
            """Mesh axes of more than one device that split an axis of this size."""
            wanted = tuple(axis for axis in RULES[name] if sizes.get(axis, 1) > 1)
            return wanted if size % math.prod(sizes[axis] for axis in wanted) == 0 else ()

        rows, ids, wide = axes("batch", hidden.shape[0]), axes("vocab", table.shape[0]), axes("embed", table.shape[1])
        wide = wide if set(wide) <= set(rows) else ()
        run = functools.partial(self._on_device, gradients=gradients, rows=rows, ids=ids, wide=wide)
        batch, head = PartitionSpec(rows or None), PartitionSpec(ids or None, None)
        outs = (PartitionSpec(), batch, *(batch, PartitionSpec(ids or None, wide or None))[:gradients])
        specs = (batch, head, {name: batch for name in items}, PartitionSpec())
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)(
            hidden, table, items, most
        )

    def _on_device(
        self,
        hidden: jax.Array,
        table: jax.Array,
        items: dict[str, jax.Array],
        most: jax.Array,
        gradients: int,
        rows: tuple[str, ...],
        ids: tuple[str, ...],
        wide: tuple[str, ...],
    ) -> tuple[jax.Array, ...]:
        """Of this device's rows of the batch and of the table, chunk by chunk.

        most: tokens of the fullest row that count. Mesh axes (or ()): rows, of the batch; ids, of the vocabulary;
        wide, of the columns of the table's gradient.
        """
        count, width = table.shape
        block = _even_block(count, BLOCK_ON_CPU if platform() == "cpu" else BLOCK)
        first_id = jax.lax.axis_index(ids) * count if ids else 0
        part = _Part(table, hidden.dtype, first_id, block, self.vocab_size, self.soft, ids)

        def one(index: jax.Array, carry: tuple) -> tuple:
            loss, nll, d_hidden, d_table = carry

            def cut(x: jax.Array) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(x, index * self.chunk, self.chunk, 1)

            def put(x: jax.Array, values: jax.Array) -> jax.Array:
                return jax.lax.dynamic_update_slice_in_dim(x, values, index * self.chunk, 1)

            cuts = {name: cut(x).reshape(-1) for name, x in items.items()}
            states = cut(hidden).reshape(-1, width)
            columns = matmul.transposed(states) if gradients > 1 else None
            row = cuts["target"] - first_id
            tokens = _Tokens(states, columns, row=row, **{"soft": None, **cuts})
            log_z, exact, sums = scan_logits(part, tokens, gradients > 0)
            learnt, norm = exact, sums.norm
            if self.soft is not None:
                norm = jnp.maximum(part.over_ids(jax.lax.psum, norm), 1e-30)
                learnt = jnp.where(tokens.soft, log_z - part.over_ids(jax.lax.psum, sums.of_near) / norm, exact)
            # `where`, not a product: 0 * inf would let a padded position poison the batch.
            loss += jnp.sum(jnp.where(tokens.weight > 0, tokens.weight * learnt, 0.0))
            nll = put(nll, jnp.where(tokens.counted, exact, 0.0).reshape(-1, self.chunk))
            if not gradients:
                return loss, nll, d_hidden, d_table
            back, d_table = slopes(part, tokens, sums, log_z, norm, d_table)
            back = part.over_ids(jax.lax.psum, back).astype(hidden.dtype).reshape(-1, self.chunk, width)
            return loss, nll, put(d_hidden, back), d_table

        carry = (jnp.zeros((), jnp.float32), jnp.zeros(hidden.shape[:2], jnp.float32), None, None)
        if gradients:
            carry = (*carry[:2], jnp.zeros_like(hidden), jnp.zeros(table.shape, jnp.float32) if gradients > 1 else None)
        loss, nll, d_hidden, d_table = jax.lax.fori_loop(0, -(-most // self.chunk), one, carry)
        if rows:
            loss = jax.lax.psum(loss, rows)
        if gradients < 2:
            return (loss, nll, d_hidden)[: 2 + gradients]
        if wide:
            d_table = jax.lax.psum_scatter(d_table, wide, scatter_dimension=1, tiled=True)
        if rest := tuple(axis for axis in rows if axis not in wide):
            d_table = jax.lax.psum(d_table, rest)
        return loss, nll, d_hidden, d_table.astype(table.dtype)
