"""Sharding: the rules table and its errors. What trains on a mesh: tests/training/test_meshes.py."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from support import hosts_training as toy

from progemu_jax.devices import sharding
from progemu_jax.errors import UserError
from progemu_jax.models import transformer


def abstract_mesh(data, fsdp, tensor):
    return jax.sharding.AbstractMesh((data, fsdp, tensor), sharding.MESH_AXES)


def abstract_params(cfg):
    return jax.eval_shape(lambda: transformer.init_params(cfg, jax.random.key(0)))


def test_spec_maps_by_the_table_and_refuses_a_collision():
    assert sharding.spec(("vocab", "embed")) == PartitionSpec(("tensor",), ("fsdp",))
    assert sharding.spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
    with pytest.raises(UserError, match="tensor"):
        sharding.spec(("heads", "mlp"))


def test_mesh_of_another_size_is_one_clear_line():
    with pytest.raises(UserError, match="devices") as error:
        sharding.make_mesh(data=3, tensor=5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("scan", [False, True])
def test_every_transformer_parameter_has_axes(scan):
    cfg = transformer.TransformerConfig(vocab_size=64, scan_layers=scan, prior_alignment=True, prior_beside=True)
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(cfg)):
        name = path[-1].key
        axes = sharding.logical_axes({n.key: leaf for n in path[-1:]}, transformer.LOGICAL_AXES)[name]
        if scan and path[0].key == transformer.STACKED:
            axes = sharding.logical_axes({"layers": {name: leaf}}, transformer.LOGICAL_AXES)["layers"][name]
            assert axes[0] == "layers"
        assert name in transformer.LOGICAL_AXES
        if name != "scale":
            assert any(axes), name


def test_emu3_8b_shards_when_the_vocabulary_is_padded():
    mesh = abstract_mesh(1, 4, 8)
    with pytest.raises(UserError, match=r"vocab axis of size 184622.*184624") as error:
        sharding.param_shardings(abstract_params(transformer.emu3_8b()), transformer.LOGICAL_AXES, mesh)
    assert "\n" not in str(error.value)
    tree = abstract_params(transformer.emu3_8b(padded_vocab_size=184_624))
    shardings = sharding.param_shardings(tree, transformer.LOGICAL_AXES, mesh)
    share = jax.tree.map(lambda leaf, s: leaf.size / s.num_devices if any(s.spec) else leaf.size, tree, shardings)
    split = [s for s in jax.tree.leaves(shardings) if any(s.spec)]
    assert len(split) == 9  # two vocabulary tables and the seven projections
    assert sum(jax.tree.leaves(share)) < 1.01 * sum(leaf.size for leaf in jax.tree.leaves(tree)) / 32


def test_placing_and_sharding_a_batch():
    mesh = toy.make_mesh("2x2x2")
    x = np.arange(16).reshape(8, 2)
    assert sharding.shard_batch(x, mesh).addressable_shards[0].data.shape == (2, 2)
    assert sharding.place(x[:3], mesh).is_fully_replicated  # the last batch of an evaluation
    with pytest.raises(UserError, match="batch=6 does not divide over the 4 devices"):
        sharding.shard_batch(x[:6], mesh)


def test_cases_are_computed_in_buckets():
    assert [sharding.bucket(n) for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 16, 24, 64, 72]
    two, six = abstract_mesh(2, 1, 4), abstract_mesh(2, 3, 1)
    assert [sharding.bucket(n, two) for n in (1, 2, 3, 5, 17)] == [1, 2, 4, 8, 32]  # of each part, where both have one
    assert [sharding.bucket(n, six) for n in (3, 5, 6, 7, 13)] == [4, 8, 6, 12, 24]


@pytest.mark.parametrize(("count", "sizes"), [(1, [1]), (3, [4]), (5, [5]), (7, [5, 5])])
def test_the_last_batch_is_filled_up_and_cut_off_again(count, sizes):
    seen, rows = [], np.arange(2 * count).reshape(count, 2)

    def double(x, y):
        seen.append(len(x))
        return x + y

    np.testing.assert_array_equal(sharding.in_batches(double, rows, rows, batch_size=5), 2 * rows)
    assert seen == sizes
