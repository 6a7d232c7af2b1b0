"""What a request will take of the device's memory, and a clear refusal before it is started."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models import transformer
from progemu_jax.sampling.engine import Engine

GIB = 2**30


def bytes_per_case(engine: Engine, slots: int) -> int:
    """Bytes of one case beside the parameters, at the largest moment of prefill and decode; an estimate.

    Cache: keys and values of each row's prompt `slots`, image, text and spare slots. Prefill: the residual stream, the
    widest layer, and one block of attention scores. Draw: scores of the widest range of the vocabulary, four times
    (guided, restricted, noise), for each token that a pass verifies, or image row of a diagonal.
    """
    model, grammar, policy = engine.model, engine.grammar, engine.policy
    rows, width = 1 + policy.guided, jnp.dtype(model.dtype).itemsize
    kept = jax.eval_shape(lambda: transformer.init_cache(model, 1, engine.cache_slots(slots)))
    cache = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))
    wide = 4 * model.hidden_size + 3 * model.intermediate_size + 3 * model.num_heads * model.head_dim
    prefill = slots * width * wide + 2 * 4 * model.num_heads * min(model.attention_block, slots) * slots
    draw = 4 * 4 * max(stop - start for start, stop in (grammar.visual_rows, grammar.text_rows))
    draw *= engine.layout.height if policy.diagonal else max(1, policy.verified)
    return rows * (cache + max(prefill, draw))


def available() -> int | None:
    """Bytes that the first device has free, of the host where it does not say; None where neither does."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in fields else None


def check(engine: Engine, cases: int, slots: int, free: int | None = None) -> None:
    """Raises UserError when so many cases at a time, of `slots` prompt slots each, do not fit.

    free: bytes that there are; None asks the device.
    """
    each, free = bytes_per_case(engine, slots), available() if free is None else free
    if free is not None and cases * each > free:
        fit = next((n for n in range(free // each, 0, -1) if sharding.bucket(n) <= free // each), 0)
        remedy = f"ask for at most {fit} at a time" if fit else "use a shorter max_text, or a device with more memory"
        raise UserError(
            f"{cases} samples at a time need about {cases * each / GIB:.1f} GiB for cache and logits, "
            f"{free / GIB:.1f} GiB are free; {remedy}"
        )
