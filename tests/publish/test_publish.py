"""Models sent to the Hub: exact weights, a card that says what the run says, what is refused; against a stand-in."""

import json
import shutil

import pytest
import yaml
from support import hub_stub, packed_run, tiny_diffusion

import progemu_jax
from progemu_jax.publish import __main__ as publishing

NAME = "lab/model"
SCORE = {"value": 0.8123, "low": 0.75, "high": 0.87, "flags": []}
METRICS = {
    "cases": 123,
    "patients": 50,
    "warnings": ["p10000032-s50414267 has no report"],
    "systems": {
        "progemu": {"title": "ProgEmu|JAX", "role": "system", "metrics": {"directional_accuracy": SCORE}},
        "copy": {
            "title": "Copy the prior",
            "role": "baseline",
            "metrics": {"directional_accuracy": {**SCORE, "value": 0}},
        },
        "shuffled": {"title": "Shuffled prompts", "role": "baseline", "metrics": {"directional_accuracy": SCORE}},
    },
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    return hub_stub.start(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = packed_run.write(tmp_path_factory.mktemp("run") / "demo")
    (run / "metrics.json").write_text(json.dumps(METRICS))
    (run / "data").mkdir()
    (run / "data/report.txt").write_text("a report")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"root": "/home/someone/cohort", "texts": {"endpoint": "http://localhost"}}
    (run / "config.json").write_text(json.dumps(config))
    return run


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def change(run, section, **values):
    config = json.loads((run / "config.json").read_text())
    config.setdefault(section, {}).update(values)
    (run / "config.json").write_text(json.dumps(config))


def publish(run, capsys, *flags):
    """(status, what was printed) of the command."""
    status = publishing.main([f"--model={run}", f"--repo={NAME}", *flags])
    printed = capsys.readouterr()
    if status:
        assert printed.err.count("\n") == 1, printed.err
    return status, printed.out + printed.err


def sent(server):
    return server.repositories[NAME].commits[server.repositories[NAME].refs["main"]]


def test_what_is_sent_is_the_model_and_nothing_else_of_the_run(server, run, capsys):
    status, printed = publish(run, capsys)
    assert status == 0
    commit = server.repositories[NAME].refs["main"]
    assert f"hf:{NAME}@{commit}" in printed
    files = sent(server)
    vocabulary = {path.name for path in (run / "train/export").iterdir()} - {"params", "export.json"}
    exports = [f"{part}/export" for part in ("train", "tokenizer", "decoder")]
    wanted = {f"{folder}/{name}" for folder in exports for name in ("export.json", "params.safetensors")}
    wanted |= {f"train/export/{name}" for name in vocabulary}
    assert set(files) == wanted | {".gitattributes", "README.md", "config.json"}
    assert b"someone" not in b"".join(files.values())
    assert b"localhost" not in b"".join(files.values())
    model = progemu_jax.load(f"hf:{NAME}")
    ours = progemu_jax.load(run)
    assert model.hash == ours.hash  # every number as it is
    assert model.policy == ours.policy
    assert model.name == f"hf:{NAME}@{commit}"


def test_the_card_says_what_the_run_says(server, run, capsys):
    publish(run, capsys)
    card = sent(server)["README.md"].decode()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert "| ProgEmu\\|JAX | 0.812 [0.750, 0.870] |" in card
    assert "| Copy the prior | 0.000" in card
    assert "Shuffled" not in card
    assert "123 held-out cases of 50 patients" in card
    assert progemu_jax.load(run).hash in card
    assert "No patient." in card
    assert "32 x 32" in card
    assert "not for diagnosis" in card
    assert "p10000032" not in card  # warnings of an evaluation may name patients
    for heading in ("## Data", "## Metrics", "## Weights", "## Limits", "## Licence"):
        assert f"\n{heading}\n" in card


def test_a_run_without_evaluation_says_so(server, run, capsys):
    (run / "metrics.json").unlink()
    publish(run, capsys)
    assert "Not evaluated" in sent(server)["README.md"].decode()


def test_a_diffusion_run_is_published_too(server, tmp_path, capsys):
    run = tmp_path / "run"
    tiny_diffusion.write(run)
    (run / "config.json").write_text(json.dumps({"data": {"source": "phantom"}}))
    assert publish(run, capsys)[0] == 0
    assert progemu_jax.load(f"hf:{NAME}").hash == progemu_jax.load(run).hash
    assert "writes no text" in sent(server)["README.md"].decode()


def test_a_later_commit_leaves_nothing_of_the_earlier_one(server, run, capsys):
    publish(run, capsys)
    shutil.rmtree(run / "decoder")
    publish(run, capsys)
    assert not [path for path in sent(server) if path.startswith("decoder/")]
    assert ".gitattributes" in sent(server)


def test_what_the_hub_has_is_not_sent_again(server, run, capsys):
    server.failing = {"/commit/": 503}
    status, printed = publish(run, capsys)
    assert status == 2
    assert "the Hub refuses, 503" in printed
    stored = len(server.seen("PUT", "/store/"))
    assert stored == 3
    server.failing.clear()
    assert publish(run, capsys)[0] == 0
    assert len(server.seen("PUT", "/store/")) == stored
    assert "README.md" in sent(server)


def test_a_folder_to_look_at_is_a_model_and_sends_nothing(server, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert publish(run, capsys, f"--out={out}")[0] == 0
    assert server.log == []
    assert progemu_jax.load(out).hash == progemu_jax.load(run).hash
    assert (out / "README.md").read_text().startswith("---\nlicense:")
    status, printed = publish(run, capsys, f"--out={out}")
    assert status == 2
    assert "exists" in printed


class TestRefusals:
    def refused(self, server, run, capsys, *flags):
        status, printed = publish(run, capsys, *flags)
        assert status == 2
        assert server.log == []
        return printed

    @pytest.mark.parametrize("source", ["mimic_cxr", "chexpertplus", "icg_cxr", "padchest", "chexpert", "folder"])
    def test_cohorts_under_an_agreement_are_not_sent_unasked(self, server, run, capsys, source):
        change(run, "data", source=source)
        assert "--acknowledge" in self.refused(server, run, capsys, "--license=other")

    def test_acknowledged_they_are_and_the_card_says_it(self, server, run, capsys):
        change(run, "data", source="padchest")
        assert "--license" in self.refused(server, run, capsys, "--acknowledge")
        assert publish(run, capsys, "--acknowledge", "--license=other", "--private")[0] == 0
        assert server.visibility == "private"
        card = sent(server)["README.md"].decode()
        assert "PadChest" in card
        assert "has acknowledged" in card
        assert "may have memorised" in card

    def test_free_patients_need_a_licence_alone(self, server, run, capsys):
        change(run, "data", source="nih_cxr14")
        assert "--license" in self.refused(server, run, capsys)
        assert publish(run, capsys, "--license=cc0-1.0")[0] == 0
        assert "NIH Clinical Center" in sent(server)["README.md"].decode()

    @pytest.mark.parametrize(("section", "key"), [("progemu", "init"), ("tokenizer", "init"), ("diffusion", "weights")])
    def test_weights_of_unknown_data_are_not_sent_unasked(self, server, run, capsys, section, key):
        change(run, section, **{key: "/home/someone/mimic-run"})
        printed = self.refused(server, run, capsys)
        assert "began from mimic-run" in printed
        assert "someone" not in printed

    def test_nor_a_model_that_says_nothing_of_its_data(self, server, run, capsys):
        (run / "config.json").unlink()
        assert "no config.json" in self.refused(server, run, capsys)

    def test_a_run_that_is_not_finished(self, server, run, capsys):
        shutil.rmtree(run / "tokenizer")
        assert "tokenizer/export" in self.refused(server, run, capsys)

    def test_no_model_and_no_name(self, server, run, tmp_path, capsys):
        assert "no such folder" in self.refused(server, tmp_path / "absent", capsys)
        assert "owner/name" in self.refused(server, run, capsys, "--repo=model")
        assert "owner/name" in self.refused(server, run, capsys, "--repo=lab/model@v1")

    def test_a_link_in_an_export(self, server, run, tmp_path, capsys):
        (tmp_path / "secret").write_text("mine")
        (run / "train/export/vocabulary").mkdir(exist_ok=True)
        (run / "train/export/vocabulary/notes.txt").symlink_to(tmp_path / "secret")
        assert "link" in self.refused(server, run, capsys)

    def test_damaged_weights(self, server, run, capsys):
        path = run / "tokenizer/export/export.json"
        record = json.loads(path.read_text())
        name = next(iter(record["crc32"]))
        record["crc32"][name] ^= 1
        path.write_text(json.dumps(record))
        assert name in self.refused(server, run, capsys)

    def test_who_may_not_write(self, server, run, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_other")
        status, printed = publish(run, capsys)
        assert status == 2
        assert "hf auth login" in printed
        assert NAME not in server.repositories
