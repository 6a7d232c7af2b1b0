"""A cohort that has labels and no reports, through every stage at toy size."""

import json

import pytest
from support import label_cohorts
from support.cohorts import chest
from support.command_line import run

import progemu_jax
from progemu_jax.data.sources.label_findings import NIH
from progemu_jax.errors import PromptWarning
from progemu_jax.files import findings as findings_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CONFIG = """
from progemu_jax.configs import nih_cxr14

def get_config():
    config = nih_cxr14.get_config()
    config.data.update(tree_size=64, image_size=32, root=ROOT)
    config.tokenizer.model.update(ch=16, patch=8, ch_mult=(1,))
    config.progemu.model.num_layers = 1
    config.scorer.update(net={"widths": (8, 16)})
    config.identity.update(net={"widths": (8, 8)})
    parts = (config.tokenizer.train, config.decoder.train, config.scorer.train, config.identity.train,
             config.progemu.words, config.progemu.stage1, config.progemu.stage2, config.progemu.reading.train)
    for part in parts:
        part.update(steps=3, batch_size=4, warmup_steps=1, eval_every=3, save_every=3)
    config.sample.update(batch_size=4, max_cases=32,
                         systems=("progemu", "text-only", "contradicting-prompts", "null-prompt"))
    return config
"""


def test_labels_alone_go_through_every_stage(tmp_path):
    root = label_cohorts.nih(tmp_path / "nih", patients=60, size=64)
    (tmp_path / "toy.py").write_text(CONFIG.replace("ROOT", repr(str(root))))
    out = run(tmp_path, tmp_path / "run")
    assert out.returncode == 0, out.stdout + out.stderr
    workdir = tmp_path / "run"
    for folder in ("data/tree", "data/references", "data/shards", "train/export"):
        assert findings_file.read(workdir / folder) == NIH
    metrics = json.loads((workdir / "metrics.json").read_text())
    found = metrics["systems"]["progemu"]["metrics"]
    assert {"finding_auroc", "directional_accuracy", "verified", "identity_auroc", "text_change_f1"} <= found.keys()
    # The reference's own words, read as a system's, say what the labels say.
    assert metrics["systems"]["followup"]["metrics"]["text_right"]["value"] == 1
    assert metrics["systems"]["followup"]["metrics"]["text_change_f1"]["value"] == 1
    told = json.loads((workdir / "scorer/validation.json").read_text())
    assert {"Effusion", "Nodule"} <= told["auroc"].keys()
    asked = [
        json.loads(x)["prompt"]
        for x in (workdir / "predictions/contradicting-prompts/predictions.jsonl").read_text().splitlines()
    ]
    assert any("nodule" in prompt or "effusion" in prompt for prompt in map(str.lower, asked))
    model, prior = progemu_jax.load(workdir), chest(0, 32)
    made = model.counterfactual(prior, "New nodule in the left upper lobe.", text=False)
    assert [read.finding for read in made.understood.read] == ["nodule"]
    assert made.understood.unknown == ()
    with pytest.warns(PromptWarning, match="fracture"):
        model.counterfactual(prior, "New rib fracture.", text=False)
