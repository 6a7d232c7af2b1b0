"""Optimizer, learning-rate schedule and gradient accumulation: pure functions over plain pytrees.

Follows ProgEmu's recipe: AdamW, global-norm clip, linear warm-up, cosine to a floor.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from progemu_jax.errors import UserError
from progemu_jax.sharding import platform

_UNDECAYED = ("scale", "bias")  # norms and biases; with scanned layers they have a second, stacking, axis


def make_schedule(cfg) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of update number `step` (0-based): linear warm-up, then cosine to the floor.

    Warm-up ends with the full rate at update `warmup_steps`, and the first update already moves.
    The floor `final_learning_rate` is reached at `steps`.
    """
    peak, floor, warmup = cfg.learning_rate, cfg.final_learning_rate, cfg.warmup_steps
    span = max(cfg.steps - warmup, 1)

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rising = peak * (step + 1) / max(warmup, 1)
        done = jnp.clip((step - warmup) / span, 0.0, 1.0)
        falling = floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup, rising, falling)

    return schedule


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay acts on: at least two axes and neither a scale nor a bias."""

    def one(path, leaf):
        name = getattr(path[-1], "key", "") if path else ""
        return np.ndim(leaf) >= 2 and name not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(cfg) -> optax.GradientTransformation:
    """Clip by global norm, Adam or Adafactor, decoupled weight decay, schedule. `cfg` is a `train.TrainConfig`.

    `cfg.clip` 0 switches the clip off. `cfg.moment_dtype` "bfloat16" stores Adam's moments in half the memory; the
    arithmetic stays in float32. "adafactor" (Shazeer & Stern 2018) holds a row and a column of second moments a
    matrix, and no first moment; its learning rate is absolute, as Adam's, and `b1`, `b2`, `eps` are not used.
    """
    if cfg.optimizer not in ("adamw", "adafactor"):
        raise UserError(f"train.optimizer={cfg.optimizer!r} is not known: use 'adamw' or 'adafactor'")
    if cfg.moment_dtype not in ("float32", "bfloat16"):
        raise UserError(f"train.moment_dtype={cfg.moment_dtype!r} is not known: use 'float32' or 'bfloat16'")
    if cfg.optimizer == "adafactor":
        if cfg.moment_dtype != "float32":
            raise UserError("train.moment_dtype='bfloat16' is for 'adamw': Adafactor's factors are small already")
        # Decay 1 - t^-0.8 and updates clipped to a root mean square of 1 (sections 7.2 and 6).
        scaled = optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))
    elif cfg.moment_dtype == "float32":
        scaled = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
    else:
        scaled = scale_by_adam_bfloat16(cfg.b1, cfg.b2, cfg.eps)
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity(),
        scaled,
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed) if cfg.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(cfg)),
    )


def scale_by_adam_bfloat16(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with both moments stored in bfloat16 by stochastic rounding.

    Rounding to nearest would freeze the second moment: with b2 near 1 its relative change per step is
    smaller than half a bfloat16 unit (2^-9). Stochastic rounding keeps it right on average; its random
    bits come from the update's number, so a resumed run repeats them.
    """

    def init(params):
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=jax.tree.map(jnp.copy, zeros))

    def update(grads, state, params=None):
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v.astype(jnp.float32) + (1 - b2) * g * g, state.nu, grads)
        mu, nu = (_round_tree(tree, 2 * count + i) for i, tree in enumerate((mu, nu)))

        def one(m, v):  # of the rounded moments: with the exact ones, both would be held until the update is done
            m, v = m.astype(jnp.float32) / (1 - b1**count), v.astype(jnp.float32) / (1 - b2**count)
            return m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(one, mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _round_tree(tree, seed):
    leaves, structure = jax.tree.flatten(tree)
    rounded = [stochastic_round(leaf, hashed_bits(leaf.shape, (seed, i))) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, rounded)


def hashed_bits(shape: tuple[int, ...], seeds: tuple, start: tuple = (), whole: tuple[int, ...] = ()) -> jax.Array:
    """uint32 random bits of each element, by hashing its index and integer seeds (MurmurHash3's finaliser).

    A tenth of the cost of a counter-based generator, and independent of how the array is sharded; good enough to
    round with. start, whole: where a part of `shape` begins in an array of shape `whole`, whose bits it gets.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    start, whole = start or (0,) * len(shape), whole or shape
    for axis in reversed(range(len(shape))):
        place = jax.lax.broadcasted_iota(jnp.uint32, shape, axis) + jnp.asarray(start[axis], jnp.uint32)
        index += place * jnp.uint32(stride % 2**32)
        stride *= whole[axis]
    seed = jnp.uint32(0)
    for value in seeds:
        seed = _mix((seed + jnp.asarray(value).astype(jnp.uint32)) * jnp.uint32(0x9E3779B1) + jnp.uint32(1))
    return _mix(_mix(index) ^ seed)


def _mix(x):
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def stochastic_round(x: jax.Array, bits: jax.Array) -> jax.Array:
    """float32 -> bfloat16, up or down with probabilities that make the mean exact. Non-finite stays so.

    bits: uint32 random bits, one each; the upper half is used.
    """
    x = x.astype(jnp.float32)
    kept = (jax.lax.bitcast_convert_type(x, jnp.uint32) + (bits >> 16)) & jnp.uint32(0xFFFF0000)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def start(optimizer: optax.GradientTransformation, cfg, params: Any) -> dict[str, Any]:
    """The part of a task's state that `advance` changes: {"params", "opt_state"}, and "ema" where cfg.ema is set."""
    state = {"params": params, "opt_state": optimizer.init(params)}
    if cfg.ema:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        state["ema"] = {"params": average, "updates": jnp.zeros((), jnp.int32)}
    return state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Gradient of a table [V, M] that is 0 but in some rows: float [N, M], of ids int32 [N], each once or V."""

    ids: jax.Array
    values: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, values: jax.Array, size: int) -> "Rows":
        """ids int [N], values [N, M]: those of one id are added up. size: V."""
        order = jnp.argsort(ids)
        ids, values = ids[order], values[order].astype(jnp.float32)
        place = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), (ids[1:] != ids[:-1]).astype(jnp.int32)]))
        unique = jnp.full(ids.shape, size, jnp.int32).at[place].set(ids.astype(jnp.int32))
        return cls(unique, jnp.zeros_like(values).at[place].add(values))


def global_norm(grads: Any) -> jax.Array:
    """Euclidean norm of all gradients, `Rows` among them."""
    is_rows = lambda x: isinstance(x, Rows)  # noqa: E731
    return optax.global_norm(jax.tree.map(lambda g: g.values if is_rows(g) else g, grads, is_leaf=is_rows))


def advance(
    optimizer: optax.GradientTransformation, cfg, state: dict[str, Any], grads: Any, shardings: Any = None
) -> dict[str, Any]:
    """`state` after one update by `grads`; keys that are not of `start` stay.

    Parameters in bfloat16 are rounded stochastically: most updates are smaller than half of their last bit. The
    moving average (`cfg.ema`) forgets faster at first, min(ema, (1 + n) / (10 + n)) at update n.

    Tables whose gradient is `Rows`, and on CPU all large tables, are updated in place a block of rows at a time (AdamW
    only): no intermediate of their size exists, and a block stays in the cache.

    shardings: on a mesh, the NamedSharding of each parameter; without them no table is updated in blocks.
    """
    before = state["params"]
    tables = _tables(cfg, before, grads, shardings)
    if tables:
        params, opt_state = _advance_tables(optimizer, cfg, state, grads, tables, shardings)
    else:
        params, opt_state = _advance_leaves(optimizer, before, state["opt_state"], grads)
    new = {**state, "params": params, "opt_state": opt_state}
    if cfg.ema:
        n = state["ema"]["updates"].astype(jnp.float32)
        decay = jnp.minimum(cfg.ema, (1 + n) / (10 + n))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state["ema"]["params"], params)
        new["ema"] = {"params": average, "updates": state["ema"]["updates"] + 1}
    return new


def _advance_leaves(optimizer, before, opt_state, grads):
    updates, opt_state = optimizer.update(grads, opt_state, before)
    counts = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0] if _is_count(path)]
    leaves, structure = jax.tree.flatten(before)
    pairs = zip(leaves, jax.tree.leaves(updates), strict=True)
    moved = [_moved(p, u, (-1 - counts[0], i)) for i, (p, u) in enumerate(pairs)]  # other seeds than the moments'
    return jax.tree.unflatten(structure, moved), opt_state


def _moved(param, update, seeds, **place):
    moved = param.astype(jnp.float32) + update
    if param.dtype == jnp.bfloat16:
        return stochastic_round(moved, hashed_bits(param.shape, seeds, **place))
    return moved.astype(param.dtype)


TABLE_ROWS = 2048  # rows of a table that are updated at a time


def _tables(cfg, params, grads, shardings):
    """Names of the parameters that are updated in blocks."""
    if cfg.optimizer != "adamw":
        return []
    known = flatten_dict(grads)
    tables = [name for name, grad in known.items() if isinstance(grad, Rows)]
    if shardings is None:
        mesh = jax.sharding.get_abstract_mesh()
        alone = mesh.empty or mesh.size == 1
    else:
        mesh, alone = jax.tree.leaves(shardings)[0].mesh.abstract_mesh, True
    if alone and platform(mesh) == "cpu":
        large = [name for name, p in flatten_dict(params).items() if p.ndim == 2 and len(p) >= 8 * TABLE_ROWS]
        tables += [name for name in large if name not in tables]
    return tables


def _advance_tables(optimizer, cfg, state, grads, tables, shardings):
    """As `_advance_leaves`, with the parameters of these names in blocks."""
    (at,) = [i for i, part in enumerate(state["opt_state"]) if isinstance(part, optax.ScaleByAdamState)]
    adam = state["opt_state"][at]
    scale = jnp.ones((), jnp.float32)
    if cfg.clip:  # here, for the optimizer below sees some of the gradients only; what is clipped it leaves
        norm = global_norm(grads)
        scale = jnp.where(norm < cfg.clip, 1.0, cfg.clip / norm)
    flat = [flatten_dict(tree) for tree in (state["params"], adam.mu, adam.nu, grads)]

    def others(tree):
        return unflatten_dict({name: leaf for name, leaf in tree.items() if name not in tables})

    rest = [others(tree) for tree in flat]
    parts = [*state["opt_state"]]
    parts[at] = adam._replace(mu=rest[1], nu=rest[2])
    smaller = jax.tree.map(lambda g: g * scale, rest[3]) if cfg.clip else rest[3]
    params, parts = _advance_leaves(optimizer, rest[0], tuple(parts), smaller)
    new = [flatten_dict(params), flatten_dict(parts[at].mu), flatten_dict(parts[at].nu)]
    where = {} if shardings is None else flatten_dict(shardings)
    for name in tables:
        seeds = sorted(flat[0]).index(name)
        table = _advance_table(cfg, adam.count, scale, seeds, *(tree[name] for tree in flat), where.get(name))
        for tree, leaf in zip(new, table, strict=True):
            tree[name] = leaf
    params, mu, nu = (_in_order(unflatten_dict(tree), adam.mu) for tree in new)
    parts = [*parts]
    parts[at] = parts[at]._replace(mu=mu, nu=nu)
    return params, tuple(parts)


def _in_order(tree, like):
    """`tree` with its keys in the order that `like` has them."""
    return {name: _in_order(tree[name], x) if isinstance(x, Mapping) else tree[name] for name, x in like.items()}


def _advance_table(cfg, count, scale, index, param, mu, nu, grad, where):
    """(param, mu, nu) of a table [V, M] after an update of AdamW. index: of the leaf. where: its NamedSharding."""
    whole, decay = param.shape, decayed({"table": param})["table"] * cfg.weight_decay

    def block(first, size, tables, grad, corner, scale, rate, done):
        p, m, v = (jax.lax.dynamic_slice_in_dim(x, first, size) for x in tables)
        start = (corner[0] + first, corner[1])
        if isinstance(grad, Rows):
            ids = grad.ids - start[0]
            ids = jnp.where((ids >= 0) & (ids < size), ids, size)
            g = jnp.zeros(p.shape, jnp.float32).at[ids].add(grad.values, mode="drop")
        else:
            g = jax.lax.dynamic_slice_in_dim(grad, first, size).astype(jnp.float32)
        g = g * scale
        m = cfg.b1 * m.astype(jnp.float32) + (1 - cfg.b1) * g
        v = cfg.b2 * v.astype(jnp.float32) + (1 - cfg.b2) * g * g
        if mu.dtype == jnp.bfloat16:  # the bits of `scale_by_adam_bfloat16`
            bits = [hashed_bits(p.shape, (2 * done + i, index), start, whole) for i in range(2)]
            m, v = stochastic_round(m, bits[0]), stochastic_round(v, bits[1])
        mean, square = m.astype(jnp.float32) / (1 - cfg.b1**done), v.astype(jnp.float32) / (1 - cfg.b2**done)
        update = mean / (jnp.sqrt(square) + cfg.eps) + decay * p.astype(jnp.float32)
        p = _moved(p, -rate * update, (-1 - done, index), start=start, whole=whole)
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(x, y, first, 0) for x, y in zip(tables, (p, m, v), strict=True)
        )

    def run(param, mu, nu, grad, *numbers):
        corner = [jax.lax.axis_index(axes) * n if axes else 0 for axes, n in zip(split, param.shape, strict=True)]
        size = min(TABLE_ROWS, len(param))
        blocks, rest = divmod(len(param), size)
        tables = jax.lax.fori_loop(
            0, blocks, lambda j, x: block(j * size, size, x, grad, corner, *numbers), (param, mu, nu)
        )
        return block(blocks * size, rest, tables, grad, corner, *numbers) if rest else tables

    split = ((), ())
    arguments = (param, mu, nu, grad, scale, make_schedule(cfg)(count), count + 1)
    if where is None or where.mesh.size == 1:
        return run(*arguments)
    split = tuple(axes or () for axes in (*where.spec, None, None)[:2])
    table = PartitionSpec(*(axes or None for axes in split))
    of_grad = Rows(PartitionSpec(), PartitionSpec(None, split[1] or None)) if isinstance(grad, Rows) else table
    specs = (table, table, table, of_grad, *[PartitionSpec()] * 3)
    mapped = jax.shard_map(run, mesh=where.mesh.abstract_mesh, in_specs=specs, out_specs=(table,) * 3, check_vma=False)
    return mapped(*arguments)


def _is_count(path):
    return getattr(path[-1], "name", None) == "count"


def averaged(state: dict[str, Any]) -> Any:
    """The parameters to evaluate and export: their moving average where there is one."""
    if "ema" not in state:
        return state["params"]
    return jax.tree.map(lambda a, p: a.astype(p.dtype), state["ema"]["params"], state["params"])


def value_and_grad_accumulated(
    loss_fn: Callable[..., tuple[jax.Array, dict]], params: Any, batch: Any, key: jax.Array, n: int = 1
) -> tuple[tuple[jax.Array, dict], Any]:
    """Loss, metrics and float32 gradients of `batch`, in `n` microbatches one after the other.

    Args:
      loss_fn: (params, batch, key) -> (mean loss, dict of scalar means). When the dict holds "weight" (the
        number of tokens the mean is over), microbatches count by it and the result is the mean over the
        whole batch, whatever the split; "weight" itself is summed.
      batch: pytree of arrays [B, ...], B divisible by n. Microbatch i takes rows i, i + n, ... so that a
        batch axis sharded over devices needs no exchange.
      key: microbatch i gets fold_in(key, i); with n = 1 the key itself.
    Returns:
      ((loss, metrics), gradients), as `jax.value_and_grad(..., has_aux=True)` does.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if n == 1:
        return grad_fn(params, batch, key)
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % n:
        raise UserError(f"train.accumulate={n} does not divide train.batch_size={size}: change either")

    def split(x):
        return jnp.swapaxes(jnp.reshape(x, (size // n, n, *x.shape[1:])), 0, 1)

    micro = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

    def body(carry, inputs):
        total, sums = carry
        part, index = inputs
        (loss, metrics), grads = grad_fn(params, part, jax.random.fold_in(key, index))
        weight = jnp.asarray(metrics.get("weight", 1.0), jnp.float32)
        sums = jax.tree.map(lambda s, x: s + weight * x.astype(jnp.float32), sums, ((loss, metrics), grads))
        return (total + weight, sums), None

    (total, sums), _ = jax.lax.scan(body, (jnp.zeros((), jnp.float32), zeros), (micro, jnp.arange(n)))
    (loss, metrics), grads = jax.tree.map(lambda s: s / jnp.maximum(total, 1e-9), sums)
    if "weight" in metrics:
        metrics = {**metrics, "weight": total}
    return (loss, metrics), grads
