"""Optimizer, learning-rate schedule and gradient accumulation: pure functions over plain pytrees.

Follows ProgEmu's recipe: AdamW, global-norm clip, linear warm-up, cosine to a floor.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from progemu_jax.errors import UserError

OPTIMIZERS = ("adamw", "adafactor", "muon")
_MATRICES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), 2),
    **dict.fromkeys(("o_proj", "gate_proj", "up_proj", "down_proj", "prior_proj", "beside_proj", "mix_proj"), 1),
}
_UNDECAYED = ("scale", "bias")  # norms and biases; with scanned layers they have a second, stacking, axis


def make_schedule(cfg: Any) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of update number `step` (0-based): linear warm-up, then cosine to the floor.

    Warm-up ends with the full rate at update `warmup_steps`, and the first update already moves.
    The floor `final_learning_rate` is reached at `steps`.
    """
    peak, floor, warmup = cfg.learning_rate, cfg.final_learning_rate, cfg.warmup_steps
    span = max(cfg.steps - warmup, 1)

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        rising = peak * (step + 1) / max(warmup, 1)
        done = jnp.clip((step - warmup) / span, 0.0, 1.0)
        falling = floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.where(step < warmup, rising, falling)

    return schedule


def decayed(params: Any) -> Any:
    """True for the leaves that weight decay acts on: at least two axes and neither a scale nor a bias."""

    def one(path: tuple, leaf: Any) -> bool:
        name = getattr(path[-1], "key", "") if path else ""
        return np.ndim(leaf) >= 2 and name not in _UNDECAYED

    return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(cfg: Any) -> optax.GradientTransformation:
    """Clip by global norm, Adam, Adafactor or Muon, decoupled weight decay, schedule. `cfg` is a `loop.TrainConfig`.

    `cfg.clip` 0 switches the clip off. `cfg.moment_dtype` "bfloat16" stores Adam's moments in half the memory; the
    arithmetic stays in float32. "adafactor" (Shazeer & Stern 2018) holds a row and a column of second moments a
    matrix, and no first moment; its learning rate is absolute, as Adam's, and `b1`, `b2`, `eps` are not used. "muon"
    (Jordan et al. 2024; scaled to Adam's step as in Liu et al. 2025, arXiv:2502.16982) orthogonalises the momentum of
    the matrices of a transformer's layers; tables, norms and all else take Adam without decay. Both have Nesterov's
    momentum.
    """
    if cfg.optimizer not in OPTIMIZERS:
        raise UserError(f"train.optimizer={cfg.optimizer!r} is not known: use one of {', '.join(OPTIMIZERS)}")
    if cfg.moment_dtype not in ("float32", "bfloat16"):
        raise UserError(f"train.moment_dtype={cfg.moment_dtype!r} is not known: use 'float32' or 'bfloat16'")
    if cfg.moment_dtype != "float32" and cfg.optimizer != "adamw":
        raise UserError(f"train.moment_dtype='bfloat16' is for 'adamw', not {cfg.optimizer!r}")
    clip = optax.clip_by_global_norm(cfg.clip) if cfg.clip else optax.identity()
    if cfg.optimizer == "muon":
        schedule = make_schedule(cfg)
        muon = optax.contrib.muon(
            schedule,
            weight_decay=cfg.weight_decay,
            adam_b1=cfg.b1,
            adam_b2=cfg.b2,
            eps=cfg.eps,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
        return optax.chain(clip, muon)
    if cfg.optimizer == "adafactor":
        # Decay 1 - t^-0.8 and updates clipped to a root mean square of 1 (sections 7.2 and 6).
        scaled = optax.chain(optax.scale_by_factored_rms(decay_rate=0.8), optax.clip_by_block_rms(1.0))
    elif cfg.moment_dtype == "float32":
        scaled = optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps)
    else:
        scaled = scale_by_adam_bfloat16(cfg.b1, cfg.b2, cfg.eps)
    return optax.chain(
        clip,
        scaled,
        optax.add_decayed_weights(cfg.weight_decay, mask=decayed) if cfg.weight_decay else optax.identity(),
        optax.scale_by_learning_rate(make_schedule(cfg)),
    )


def _matrices(params: Any) -> Any:
    """What Muon acts on: axes that a product sums over and those that it gives; None for all else."""

    def one(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        name, n = getattr(path[-1], "key", ""), np.ndim(leaf)
        if name not in _MATRICES:
            return None
        given = _MATRICES[name]  # axes of the product's result; before them what it sums over, then scanned layers
        summed = 2 if name == "o_proj" else 1
        at = n - given
        return optax.contrib.MuonDimensionNumbers(tuple(range(at - summed, at)), tuple(range(at, n)))

    return jax.tree_util.tree_map_with_path(one, params)


def scale_by_adam_bfloat16(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam with both moments stored in bfloat16 by stochastic rounding.

    Rounding to nearest would freeze the second moment: with b2 near 1 its relative change per step is
    smaller than half a bfloat16 unit (2^-9). Stochastic rounding keeps it right on average; its random
    bits come from the update's number, so a resumed run repeats them.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.bfloat16), params)
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=jax.tree.map(jnp.copy, zeros))

    def update(grads: Any, state: optax.ScaleByAdamState, params: Any = None) -> tuple:
        del params
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m.astype(jnp.float32) + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v.astype(jnp.float32) + (1 - b2) * g * g, state.nu, grads)
        mu, nu = (_round_tree(tree, 2 * count + i) for i, tree in enumerate((mu, nu)))

        # Of the rounded moments: with the exact ones, both would be held until the update is done.
        def one(m: jax.Array, v: jax.Array) -> jax.Array:
            m, v = m.astype(jnp.float32) / (1 - b1**count), v.astype(jnp.float32) / (1 - b2**count)
            return m / (jnp.sqrt(v) + eps)

        updates = jax.tree.map(one, mu, nu)
        return updates, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def _round_tree(tree: Any, seed: jax.Array) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    rounded = [stochastic_round(leaf, hashed_bits(leaf.shape, (seed, i))) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, rounded)


def hashed_bits(shape: tuple[int, ...], seeds: tuple) -> jax.Array:
    """uint32 random bits of each element, by hashing its index and integer seeds (MurmurHash3's finaliser).

    A tenth of the cost of a counter-based generator, and independent of how the array is sharded; good enough to
    round with.
    """
    index, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        index += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
        stride *= shape[axis]
    seed = jnp.uint32(0)
    for value in seeds:
        seed = _mix((seed + jnp.asarray(value).astype(jnp.uint32)) * jnp.uint32(0x9E3779B1) + jnp.uint32(1))
    return _mix(_mix(index) ^ seed)


def _mix(x: jax.Array) -> jax.Array:
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


def start(optimizer: optax.GradientTransformation, cfg: Any, params: Any) -> dict[str, Any]:
    """The part of a task's state that `advance` changes: {"params", "opt_state"}, and "ema" where cfg.ema is set."""
    state = {"params": params, "opt_state": optimizer.init(params)}
    if cfg.ema:
        average = jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
        state["ema"] = {"params": average, "updates": jnp.zeros((), jnp.int32)}
    return state


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Gradient of a table [V, M] that is 0 but in some rows: f32 [N, M], of ids int32 [N], each once or V."""

    ids: jax.Array
    values: jax.Array

    @classmethod
    def of(cls, ids: jax.Array, values: jax.Array, size: int) -> "Rows":
        """ids int [N], values [N, M]: those of one id are added up. size: V."""
        order = jnp.argsort(ids)
        ids, values = ids[order].astype(jnp.int32), values[order].astype(jnp.float32)
        place = jnp.cumsum(jnp.concatenate([jnp.zeros(1, bool), ids[1:] != ids[:-1]]))
        return cls(jnp.full_like(ids, size).at[place].set(ids), jnp.zeros_like(values).at[place].add(values))

    def table(self, size: int) -> jax.Array:
        """f32 [V, M]."""
        # Zeros that XLA does not know as such: else it shares one table of them with other uses, from the step's start.
        zero = jnp.minimum(self.ids[0], 0).astype(jnp.float32)
        zeros = jnp.full((size, self.values.shape[1]), zero)
        return zeros.at[self.ids].add(self.values, mode="drop", unique_indices=True)


def global_norm(grads: Any) -> jax.Array:
    """Euclidean norm of all gradients, `Rows` among them."""
    rows = [g for g in jax.tree.leaves(grads, is_leaf=_is_rows) if _is_rows(g)]
    others = jax.tree.map(lambda g: None if _is_rows(g) else g, grads, is_leaf=_is_rows)
    return optax.global_norm([others, [g.values for g in rows]])


def _is_rows(x: Any) -> bool:
    return isinstance(x, Rows)


def advance(optimizer: optax.GradientTransformation, cfg: Any, state: dict[str, Any], grads: Any) -> dict[str, Any]:
    """`state` after one update by `grads`; keys that are not of `start` stay.

    Parameters in bfloat16 are rounded stochastically: most updates are smaller than half of their last bit. The
    moving average (`cfg.ema`) forgets faster at first, min(ema, (1 + n) / (10 + n)) at update n.

    At the top of `grads` there may be `Rows` (AdamW only). Each is made a table when the other parameters have been
    updated and their gradients are gone.
    """
    if rows := {name: g for name, g in grads.items() if _is_rows(g)}:
        params, opt_state = _advance_with_rows(optimizer, cfg, state, grads, rows)
    else:
        params, opt_state = _advance_all(optimizer, state["params"], state["opt_state"], grads)
    new = {**state, "params": params, "opt_state": opt_state}
    if cfg.ema:
        n = state["ema"]["updates"].astype(jnp.float32)
        decay = jnp.minimum(cfg.ema, (1 + n) / (10 + n))
        average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, state["ema"]["params"], params)
        new["ema"] = {"params": average, "updates": state["ema"]["updates"] + 1}
    return new


def _advance_with_rows(
    optimizer: optax.GradientTransformation, cfg: Any, state: dict[str, Any], grads: Any, rows: dict[str, Rows]
) -> tuple[dict, tuple]:
    """(parameters, optimizer state): first of all that have whole gradients, then of the tables."""
    (at,) = [i for i, part in enumerate(state["opt_state"]) if isinstance(part, optax.ScaleByAdamState)]
    scale = 1.0
    if cfg.clip:  # by the norm of all; what is clipped already the optimizer leaves
        norm = global_norm(grads)
        scale = jnp.where(norm < cfg.clip, 1.0, cfg.clip / norm)

    def update(names: Any, grads: Any) -> tuple[dict, tuple]:
        def of(tree: Any) -> dict:
            return {name: tree[name] for name in names}

        parts = [*state["opt_state"]]
        parts[at] = parts[at]._replace(mu=of(parts[at].mu), nu=of(parts[at].nu))
        params, parts = _advance_all(optimizer, of(state["params"]), tuple(parts), jax.tree.map(scale_one, grads))
        return params, parts

    def scale_one(g: jax.Array) -> jax.Array:
        return g * scale if cfg.clip else g

    params, parts = update([n for n in grads if n not in rows], {n: g for n, g in grads.items() if n not in rows})
    values, params = jax.lax.optimization_barrier(({n: g.values for n, g in rows.items()}, params))
    tables = {n: dataclasses.replace(g, values=values[n]).table(len(state["params"][n])) for n, g in rows.items()}
    others, more = update(rows, tables)
    adam = parts[at]._replace(mu={**parts[at].mu, **more[at].mu}, nu={**parts[at].nu, **more[at].nu})
    return {**params, **others}, (*parts[:at], adam, *parts[at + 1 :])


def _advance_all(optimizer: optax.GradientTransformation, before: Any, opt_state: Any, grads: Any) -> tuple[Any, Any]:
    """(parameters, optimizer state) after one update by whole gradients."""
    updates, opt_state = optimizer.update(grads, opt_state, before)
    counts = [leaf for path, leaf in jax.tree_util.tree_flatten_with_path(opt_state)[0] if _is_count(path)]
    seed = -1 - counts[0]  # another one than the moments'

    def apply(index: int, param: jax.Array, update: jax.Array) -> jax.Array:
        moved = param.astype(jnp.float32) + update
        if param.dtype == jnp.bfloat16:
            return stochastic_round(moved, hashed_bits(param.shape, (seed, index)))
        return moved.astype(param.dtype)

    leaves, structure = jax.tree.flatten(before)
    moved = [apply(i, p, u) for i, (p, u) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True))]
    return jax.tree.unflatten(structure, moved), opt_state


def _is_count(path: tuple) -> bool:
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

    def split(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(jnp.reshape(x, (size // n, n, *x.shape[1:])), 0, 1)

    micro = jax.tree.map(split, batch)
    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

    def body(carry: tuple, inputs: tuple) -> tuple:
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
