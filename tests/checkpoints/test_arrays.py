"""Checksums of arrays: of the values, not of where they lie."""

import jax
import numpy as np
from jax.sharding import PartitionSpec
from support import hosts_training as toy

from progemu_jax.checkpoints import arrays


def test_checksums_do_not_depend_on_the_sharding_and_see_a_flipped_bit():
    array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    mesh = toy.make_mesh("2x2x2")
    split = jax.device_put(array, jax.sharding.NamedSharding(mesh, PartitionSpec("fsdp", ("data", "tensor"))))
    one = arrays.checksums({"x": array})
    assert arrays.checksums({"x": split}) == one
    array.view(np.uint32)[3, 4] ^= 1
    assert arrays.checksums({"x": array}) != one
    array.view(np.uint32)[3, 4] ^= 1
    assert arrays.checksums({"x": array[::-1].copy()}) != one
