"""What parts share: random weights, times, programs that compile side by side."""

import os
import statistics
import time
import zlib
from concurrent.futures import ThreadPoolExecutor, wait

import jax
import jax.numpy as jnp
import numpy as np

from progemu_jax.devices import accelerators

# Not random: what a norm multiplies by, and a variance.
_ONES = ("scale", "var")


def seconds(call, times=3):
    """Median time of call(), which gives arrays."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def bandwidth():
    """Bytes a second of the device's memory by its maker's data sheet; None for a device that is not in the table."""
    here = accelerators.of_kind(jax.devices()[0].device_kind)
    return (here.bandwidth or None) if here else None


def copy_bandwidth(numbers):
    """Bytes a second that a sum of an array and 1 reads and writes, of so many float32."""
    x = jnp.ones(numbers, jnp.float32)
    add = jax.jit(lambda x: x + 1)
    jax.block_until_ready(add(x))
    return 8 * numbers / seconds(lambda: add(x), 10)


def on_device(shapes, dtype=None, std=0.02):
    """Random normal weights like a tree of shapes, made on the device: no copy of them is on the host, at no time."""
    draw = jax.jit(lambda key, shape, dtype: std * jax.random.normal(key, shape, dtype), static_argnums=(1, 2))

    def leaf(path, x):
        kind = jnp.dtype(dtype or x.dtype)
        if path[-1].key in _ONES:
            return jnp.ones(x.shape, kind)
        return draw(jax.random.key(_number(path)), x.shape, kind)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def on_host(shapes, dtype=np.float32, std=0.02):
    """Weights like a tree of shapes, the same bits everywhere: parts of one row of normal numbers.

    For models of many shapes, for each of which `on_device` compiles.
    """
    normal = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)

    def leaf(path, x):
        values = np.resize(normal[_number(path) % (1 << 19) :], x.shape)
        return (1 + 0.1 * np.abs(values) if path[-1].key in _ONES else std * values).astype(dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _number(path):
    return zlib.crc32(jax.tree_util.keystr(path).encode())


def at_once(run, jobs, share=0.6):
    """{name: result} of {name: function}, in threads, first come first: compilation takes one core a program.

    Jobs that fail, or are not done after this share of the time that the part has left, are said and left out.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, min(len(jobs), (os.cpu_count() or 2) // 2)))
    began, futures = time.time(), {name: pool.submit(job) for name, job in jobs.items()}
    wait(futures.values(), timeout=max(0.0, share * run.left()))
    pool.shutdown(wait=False, cancel_futures=True)
    done = {}
    for name, future in futures.items():
        if not future.done() or future.cancelled():
            run.say(skipped=f"{name}: not compiled after {time.time() - began:.0f} s")
        elif future.exception() is not None:
            run.attempt(name, future.result)
        else:
            done[name] = future.result()
    return done
