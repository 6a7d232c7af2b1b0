"""The layout of sequences that a config implies."""

import numpy as np

from progemu_jax.convert import components


def test_layouts():
    conv = components.Entry("params.x.kernel", (3, 3, 2, 5), "x.weight", "conv")
    theirs = np.arange(90).reshape(5, 2, 3, 3)
    assert conv.tensor_shape == theirs.shape
    assert conv.ours(theirs)[1, 2, 0, 4] == theirs[4, 0, 1, 2]
    query = components.Entry("layers_0.self_attn.q_proj", (6, 2, 4), "q", "linear")
    theirs = np.arange(48).reshape(8, 6)
    assert query.ours(theirs)[5, 1, 2] == theirs[1 * 4 + 2, 5]
    out = components.Entry("layers_0.self_attn.o_proj", (2, 4, 6), "o", "linear")
    theirs = np.arange(48).reshape(6, 8)
    assert out.ours(theirs)[1, 2, 5] == theirs[5, 1 * 4 + 2]
    for entry, shape in ((conv, (5, 2, 3, 3)), (query, (8, 6)), (out, (6, 8))):
        theirs = np.arange(np.prod(shape)).reshape(shape)
        np.testing.assert_array_equal(entry.theirs(entry.ours(theirs)), theirs)
