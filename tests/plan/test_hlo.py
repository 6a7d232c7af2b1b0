"""What a compiled program sends between devices, read off its text."""

import jax
import pytest
from jax.sharding import PartitionSpec
from support import hosts_training as toy

from progemu_jax.devices import sharding
from progemu_jax.plan import hlo

KERNEL = """\
%body (p: (s32[], f32[64])) -> (s32[], f32[64]) {
  %kernel = f32[64]{0} custom-call(%x), frontend_attributes={kernel_metadata={
"block": "512"
}}, backend_config={}
  %gathered = f32[64]{0} all-gather(%y), replica_groups={{0,1,2,3}}, dimensions={0}
}

%condition (p: (s32[], f32[64])) -> pred[] {
  %last = s32[]{:T(128)} constant(5)
}

ENTRY %main (x: f32[64]) -> f32[64] {
  %loop = (s32[], f32[64]) while(%start), condition=%condition, body=%body
}
"""


def test_what_a_program_sends_is_found_behind_a_kernel():
    assert hlo.collectives(KERNEL, 8) == {"all-gather": 5 * 3 / 4 * 256}


def test_what_a_program_sends_counts_loops():
    """One all-reduce of 4 KB in a loop of 7 over 8 devices: 7 x 2 x 7/8 of it."""
    mesh = toy.make_mesh("8x1x1")
    where = jax.sharding.NamedSharding(mesh, PartitionSpec("data"))

    def program(x):
        def body(total, _):
            return total + jax.lax.with_sharding_constraint(x * total[0], where).sum(0), None

        return jax.lax.scan(body, jax.numpy.zeros(1024), None, length=7)[0]

    x = jax.ShapeDtypeStruct((64, 1024), jax.numpy.float32, sharding=where)
    text = jax.jit(program, out_shardings=sharding.replicated(mesh)).lower(x).compile().as_text()
    assert hlo.collectives(text, 8) == {"all-reduce": pytest.approx(7 * 2 * 7 / 8 * 4096)}
