"""What a model of 256 possible images draws, against exact distributions by enumeration: drafts, the diagonal mode."""

import dataclasses

import numpy as np
import pytest
from support.few_images import alone, build, drawn, exact, total_variation, trained, untrained

from progemu_jax.sampling.policy import Sampling

LAW = Sampling(temperature=0.8, top_k=3, guidance=1.5, max_text=2)
IN_DIAGONALS = dataclasses.replace(LAW, mode="diagonal")
REFUSING = [("prior", "maximal"), ("jacobi", "maximal"), ("jacobi", "independent")]


@pytest.fixture(scope="module")
def small():
    return build(codes=4, height=2, width=2, length=48)


def of_a_diagonal(p):
    """The distribution nearest to p, f64 [256], whose codes of a diagonal do not see each other (by KL(p || it))."""
    p = p.reshape(4, 4, 4, 4)  # codes (0, 0), (0, 1), (1, 0), (1, 1)
    first = p.sum((1, 2, 3), keepdims=True)
    right, below, rest = p.sum((2, 3), keepdims=True), p.sum((1, 3), keepdims=True), p.sum(3, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(right * below / first * p / rest).reshape(-1)


@pytest.mark.parametrize(("draft", "coupling"), REFUSING)
def test_drafts_leave_the_distribution_as_it_is(small, draft, coupling):
    target, policy = exact(small, LAW), dataclasses.replace(LAW, draft=draft, coupling=coupling, window=4)
    assert total_variation(drawn(small, policy, 10_000), target) < alone(target, 10_000)


@pytest.mark.slow
@pytest.mark.parametrize(("draft", "coupling"), [("prior", "gumbel"), ("jacobi", "gumbel"), *REFUSING])
def test_total_variation_over_1e5_draws(small, draft, coupling):
    target, policy = exact(small, LAW), dataclasses.replace(LAW, draft=draft, coupling=coupling, window=4)
    found, most = total_variation(drawn(small, policy, 100_000), target), alone(target, 100_000)
    print(f"{draft} {coupling}: total variation {found:.4f}, sampling alone (99.9 %) {most:.4f}")
    assert found < most
    # That it can fail: a distribution a little off.
    assert total_variation(exact(small, dataclasses.replace(LAW, temperature=0.9)), target) > 2 * most


@pytest.fixture(scope="module")
def diagonal():
    """A model whose codes of a diagonal depend on each other, with a head that is not trained."""
    return untrained(build(codes=4, height=2, width=2, length=48, seed=4))


def test_diagonals_are_drawn_from_the_distribution_of_their_own_order(diagonal):
    target = exact(diagonal, IN_DIAGONALS)
    found = drawn(diagonal, IN_DIAGONALS, 10_000)
    assert total_variation(found, target) < alone(target, 10_000)
    assert total_variation(found, exact(diagonal, LAW)) > 2 * alone(target, 10_000)  # not the row order's


@pytest.mark.slow
def test_total_variation_of_diagonals_from_the_row_order(diagonal):
    """How far the mode is from exact: an untrained head, a trained one, and what no head can mend."""
    rows, apart = exact(diagonal, LAW), {}
    noise, most = total_variation(drawn(diagonal, LAW, 100_000), rows), alone(rows, 100_000)
    assert noise < most
    print(f"by rows: total variation {noise:.4f}, sampling alone (99.9 %) {most:.4f}")
    for name, parts in (("untrained", diagonal), ("trained", trained(diagonal, LAW))):
        assert total_variation(exact(parts, LAW), rows) < 1e-6  # the row order stays as it is
        own, found = exact(parts, IN_DIAGONALS), drawn(parts, IN_DIAGONALS, 100_000)
        assert total_variation(found, own) < alone(own, 100_000)
        apart[name] = total_variation(found, rows)
        print(f"by diagonals, {name} head: from the row order {apart[name]:.4f}, {total_variation(own, rows):.4f} by")
        print(f"enumeration; from what it should draw {total_variation(found, own):.4f}")
    print(f"codes of a diagonal independent, all else exact: {total_variation(of_a_diagonal(rows), rows):.4f}")
    assert most < apart["trained"] < 0.2 * apart["untrained"]
