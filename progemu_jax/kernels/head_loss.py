"""Cross-entropy of a head whose logits never exist as a whole, with its gradient in the same pass."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
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

    def first(x):
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


class _Head:
    """(hidden [B, T, D], table [V, D], items of [B, T]) -> (sum of weighted losses, nll [B, T]); T divides by chunk."""

    def __init__(self, chunk: int, vocab_size: int | None, soft: SoftCodes | None):
        self.chunk, self.vocab_size, self.soft = chunk, vocab_size, soft

    def __call__(self, hidden, table, items):
        @jax.custom_vjp
        def total(hidden, table):
            return self._run(hidden, table, items, False)[:2]

        def forward(hidden, table):
            loss, nll, *gradients = self._run(hidden, table, items, True)
            return (loss, nll), gradients

        def backward(gradients, cotangents):
            return tuple((g * cotangents[0]).astype(g.dtype) for g in gradients)

        total.defvjp(forward, backward)
        return total(hidden, table)

    def _run(self, hidden, table, items, with_gradient):
        """(loss, nll, and with_gradient those of hidden and table); on a mesh, each device its rows and ids."""
        most = jnp.max(jnp.sum(items["counted"], axis=1))
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return self._local(hidden, table, items, most, with_gradient, (), (), ())
        sizes = dict(mesh.shape)

        def axes(name, size):
            """Mesh axes of more than one device that split an axis of this size."""
            wanted = tuple(axis for axis in RULES[name] if sizes.get(axis, 1) > 1)
            return wanted if size % math.prod(sizes[axis] for axis in wanted) == 0 else ()

        rows, ids, wide = axes("batch", hidden.shape[0]), axes("vocab", table.shape[0]), axes("embed", table.shape[1])
        wide = wide if set(wide) <= set(rows) else ()
        run = functools.partial(self._local, with_gradient=with_gradient, rows=rows, ids=ids, wide=wide)
        batch, head = PartitionSpec(rows or None), PartitionSpec(ids or None, None)
        outs = (PartitionSpec(), batch, *((batch, PartitionSpec(ids or None, wide or None)) * with_gradient))
        specs = (batch, head, {name: batch for name in items}, PartitionSpec())
        return jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=outs, check_vma=False)(
            hidden, table, items, most
        )

    def _local(self, hidden, table, items, most, with_gradient, rows, ids, wide):
        """Mesh axes (or ()): rows, of the batch; ids, of the vocabulary; wide, of the table's gradient's columns."""
        count, width = table.shape
        block = min(BLOCK_ON_CPU if platform() == "cpu" else BLOCK, count)
        blocks, tokens = -(-count // block), hidden.shape[0] * self.chunk
        first_id = jax.lax.axis_index(ids) * count if ids else 0

        def over_ids(reduce, x):
            return reduce(x, ids) if ids else x

        def at(j, part):
            """Block j of the head: (first row, its rows, which are ids that count, those that are codes near)."""
            start = jnp.minimum(j * block, count - block)  # the last block reaches back; what it has twice is out
            local = start + jnp.arange(block)
            known, names = local >= j * block, first_id + local
            if self.vocab_size is not None:
                known &= names < self.vocab_size
            near = None
            if self.soft is not None:
                codes, q = names - self.soft.start, len(self.soft.codebook)
                near = jnp.where((codes >= 0) & (codes < q) & known, self._near(part["target"], codes), 0.0)
            return start, jax.lax.dynamic_slice_in_dim(table, start, block).astype(hidden.dtype), known, near

        def body(index, carry):
            loss, nll, d_hidden, d_table = carry

            def cut(x):
                return jax.lax.dynamic_slice_in_dim(x, index * self.chunk, self.chunk, 1)

            part = {name: cut(x).reshape(-1) for name, x in items.items()}
            states = cut(hidden).reshape(tokens, width)
            columns = matmul.transposed(states)
            target = part["target"] - first_id  # its row, where this device has it
            zero = jnp.zeros(tokens, jnp.float32)

            def scan_logits(j, carry):
                top, total, of_target, of_near, norm, every = carry
                start, head, known, near = at(j, part)
                logits = jnp.einsum("ND,VD->NV", states, head, preferred_element_type=jnp.float32)
                logits = jnp.where(known, logits, -1e30)
                new_top = jnp.maximum(top, logits.max(-1))
                shares = jnp.exp(logits - new_top[:, None])
                if every is not None:  # once for both uses: this is the dearest of the element-wise work
                    shares = jax.lax.optimization_barrier(shares)
                    kept = jax.lax.bitcast_convert_type(shares.astype(hidden.dtype), every[0].dtype)[None]
                    every = (
                        jax.lax.dynamic_update_slice_in_dim(every[0], kept, j, 0),
                        jax.lax.dynamic_update_slice_in_dim(every[1], new_top[None], j, 0),
                    )
                total = total * jnp.exp(top - new_top) + shares.sum(-1)
                here = (target >= j * block) & (target < start + block)
                at_target = jnp.take_along_axis(logits, jnp.clip(target - start, 0, block - 1)[:, None], 1)[:, 0]
                of_target += jnp.where(here, at_target, 0.0)
                if near is not None:
                    of_near, norm = of_near + (near * logits).sum(-1), norm + near.sum(-1)
                return new_top, total, of_target, of_near, norm, every

            every = None
            if with_gradient:  # exp(logit - top) of each block, and that top: what the slopes are made from
                # As integers of the dtype's size: of bfloat16 XLA's CPU compiler would widen all to change a part.
                bits = jnp.uint16 if hidden.dtype.itemsize == 2 else jnp.uint32
                every = (jnp.zeros((blocks, tokens, block), bits), jnp.zeros((blocks, tokens), jnp.float32))
            start = (jnp.full(tokens, -jnp.inf), zero, zero, zero, zero, every)
            top, total, of_target, of_near, norm, every = jax.lax.fori_loop(0, blocks, scan_logits, start)
            highest = over_ids(jax.lax.pmax, top)
            log_z = highest + jnp.log(over_ids(jax.lax.psum, total * jnp.exp(top - highest)))
            token = log_z - over_ids(jax.lax.psum, of_target)
            learnt = token
            if self.soft is not None:
                norm = jnp.maximum(over_ids(jax.lax.psum, norm), 1e-30)
                learnt = jnp.where(part["soft"], log_z - over_ids(jax.lax.psum, of_near) / norm, token)
            weight = part["weight"]
            # `where`, not a product: 0 * inf would let a padded position poison the batch.
            loss += jnp.sum(jnp.where(weight > 0, weight * learnt, 0.0))
            token = jnp.where(part["counted"], token, 0.0).reshape(-1, self.chunk)
            nll = jax.lax.dynamic_update_slice_in_dim(nll, token, index * self.chunk, 1)
            if not with_gradient:
                return loss, nll, d_hidden, d_table

            def slopes(j, carry):
                back, d_table = carry
                start, head, known, near = at(j, part)
                wanted = (start + jnp.arange(block) == target[:, None]).astype(jnp.float32)
                if near is not None:
                    wanted = jnp.where(part["soft"][:, None], near / norm[:, None], wanted)
                shares = jax.lax.bitcast_convert_type(every[0][j], hidden.dtype).astype(jnp.float32)
                shares = shares * jnp.exp(every[1][j] - log_z)[:, None]
                slope = jnp.where((weight > 0)[:, None] & known, weight[:, None] * (shares - wanted), 0.0)
                slope = jax.lax.optimization_barrier(slope.astype(hidden.dtype))  # once for both products
                back += jnp.einsum("NV,VD->ND", slope, head, preferred_element_type=jnp.float32)
                more = matmul.outer(slope, states, columns)
                so_far = jax.lax.dynamic_slice_in_dim(d_table, start, block)
                return back, jax.lax.dynamic_update_slice_in_dim(d_table, so_far + more, start, 0)

            back, d_table = jax.lax.fori_loop(0, blocks, slopes, (jnp.zeros((tokens, width), jnp.float32), d_table))
            back = over_ids(jax.lax.psum, back).astype(hidden.dtype).reshape(-1, self.chunk, width)
            d_hidden = jax.lax.dynamic_update_slice_in_dim(d_hidden, back, index * self.chunk, 1)
            return loss, nll, d_hidden, d_table

        carry = (jnp.zeros((), jnp.float32), jnp.zeros(hidden.shape[:2], jnp.float32), None, None)
        if with_gradient:
            carry = (*carry[:2], jnp.zeros_like(hidden), jnp.zeros(table.shape, jnp.float32))
        loss, nll, d_hidden, d_table = jax.lax.fori_loop(0, -(-most // self.chunk), body, carry)
        if rows:
            loss = jax.lax.psum(loss, rows)
        if not with_gradient:
            return loss, nll
        if wide:
            d_table = jax.lax.psum_scatter(d_table, wide, scatter_dimension=1, tiled=True)
        if rest := tuple(axis for axis in rows if axis not in wide):
            d_table = jax.lax.psum(d_table, rest)
        return loss, nll, d_hidden, d_table.astype(table.dtype)

    def _near(self, targets, codes):
        """exp(-|e_t - e_c|^2 / width) of the codes of targets [N] and codes [V] (clipped into range) -> [N, V]."""
        table = jnp.asarray(self.soft.codebook)
        targets = jnp.clip(targets - self.soft.start, 0, len(table) - 1)
        codes = jnp.clip(codes, 0, len(table) - 1)
        return self.soft.similar(targets, codes)
