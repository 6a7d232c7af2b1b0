"""The scorer's network: the head for severities changes nothing where it is off, nor the other heads where it is on."""

import dataclasses

import jax
import jax.numpy as jnp
from support.small_scorer import SMALL

from progemu_jax.models.scorer import ScorerNet, ScorerNetConfig


def shapes(config):
    tree = jax.eval_shape(ScorerNet(config).init, jax.random.key(0), jnp.zeros((1, 32, 32)))["params"]
    return {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_severity_adds_its_own_parameters_and_no_other():
    old, new = shapes(SMALL), shapes(dataclasses.replace(SMALL, severity=True))
    assert {name: new[name] for name in old} == old
    assert {name: shape for name, shape in new.items() if name not in old} == {
        "['severity']['kernel']": (256, 8), "['severity']['bias']": (8,),
    }  # fmt: skip


def test_a_network_without_it_has_the_text_that_kept_scores_are_found_by():
    text = "ScorerNetConfig(widths=(24, 48, 96), blocks=1, findings=8, groups=2, organs=6)"
    assert repr(ScorerNetConfig()) == text
