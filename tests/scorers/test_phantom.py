"""The phantom's scorer: severities where the network has a head for them, old exports as they were."""

import dataclasses

import numpy as np
from support import small_scorer

from progemu_jax.checkpoints import export
from progemu_jax.files.settings import to_dict
from progemu_jax.scorers.cache import Cached
from progemu_jax.scorers.phantom import PhantomScorer

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)


def test_an_export_from_before_the_head_loads_and_gives_no_severity(phantom, tmp_path):
    net = to_dict(small_scorer.SMALL)
    del net["severity"]
    export.export(phantom.params, {"kind": "scorer", "net": net, "image_size": 32}, tmp_path / "export")
    loaded = PhantomScorer.load(tmp_path / "export")
    assert loaded.identity == phantom.identity
    assert "finding_severity" not in loaded(IMAGES, "phantom", batch_size=4)


def test_severity_is_the_head_through_a_sigmoid_and_goes_through_the_cache(phantom, tmp_path):
    logits = np.linspace(-4, 4, 8, dtype=np.float32)
    head = {"kernel": np.zeros((256, 8), np.float32), "bias": logits}
    net = dataclasses.replace(small_scorer.SMALL, severity=True)
    scorer = PhantomScorer({**phantom.params, "severity": head}, net, 32)
    assert scorer.identity != phantom.identity
    out = Cached(scorer, tmp_path)(IMAGES, "phantom")
    assert out["finding_severity"].dtype == np.float32
    np.testing.assert_allclose(out["finding_severity"], np.tile(1 / (1 + np.exp(-logits)), (3, 1)), rtol=1e-5)
    np.testing.assert_allclose(out["finding_prob"], phantom(IMAGES, "phantom")["finding_prob"], atol=1e-6)
