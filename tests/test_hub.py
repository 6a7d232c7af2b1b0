"""Repositories of the Hub as folders: pinned, resumed, compared; against a stand-in for the Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import emu3_folders, hub_stub, packed_run
from support.cohorts import chest
from support.errors import fails
from support.tiny_run import PROMPT

import progemu_jax
from progemu_jax import hub, provenance
from progemu_jax.app.service import Service
from progemu_jax.checkpoints import safetensors
from progemu_jax.gallery.__main__ import gallery
from progemu_jax.pretrained import __main__ as packing

NAME = "lab/model"
FILES = {"config.json": b"{}", "train/weights.safetensors": bytes(range(256)) * 400, "notes.py": b"raise SystemExit"}


@pytest.fixture
def server(tmp_path, monkeypatch):
    return hub_stub.start(tmp_path / "cache", monkeypatch)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """{path: content} of a packed model, and its folder."""
    run = packed_run.write(tmp_path_factory.mktemp("packed") / "run")
    packing.pack(run, run.parent / "box")
    return run.parent / "box/phantom"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestAddresses:
    @pytest.mark.parametrize(
        ("address", "found"),
        [
            ("hf:a/b", ("a/b", None)),
            ("hf:a.b/c-d_e@v1.0", ("a.b/c-d_e", "v1.0")),
            ("hf:a/b@refs/pr/1", ("a/b", "refs/pr/1")),
        ],
    )
    def test_read(self, address, found):
        assert hub.parse(address) == found

    @pytest.mark.parametrize(
        "address", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b@", "hf:../b", "hf:a/..", "hf:a/b@../x", "hf:a /b", "hf:a/b@x\ny"]
    )
    def test_refused(self, address):
        fails("expected hf:owner/name", hub.parse, address)

    def test_a_path_is_a_folder_and_the_text_is_not(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert hub.is_address("hf:a/b")
        assert not hub.is_address(Path("hf:a/b"))
        assert not hub.is_address("./hf:a/b")
        fails("no such folder", progemu_jax.load, "./hf:a/b")


class TestFetch:
    def test_a_snapshot_holds_what_readers_open_and_no_code(self, server):
        commit = server.put(NAME, FILES)
        folder, pinned = hub.fetch(f"hf:{NAME}")
        assert pinned == f"hf:{NAME}@{commit}"
        assert contents(folder) == {path: FILES[path] for path in FILES if not path.endswith(".py")}
        assert not server.seen("GET", "notes.py")

    def test_a_revision_is_pinned_though_the_branch_moves(self, server):
        old = server.put(NAME, FILES)
        new = server.put(NAME, {**FILES, "config.json": b'{"new": 1}'})
        server.repositories[NAME].refs["v1"] = old
        for revision, wanted in (("v1", old), (old, old), ("main", new)):
            folder, pinned = hub.fetch(f"hf:{NAME}@{revision}")
            assert pinned == f"hf:{NAME}@{wanted}"
            assert (folder / "config.json").read_bytes() == (b"{}" if wanted == old else b'{"new": 1}')

    def test_a_commit_in_the_cache_needs_no_network(self, server):
        commit = server.put(NAME, FILES)
        folder, pinned = hub.fetch(f"hf:{NAME}")
        server.repositories.clear()
        server.log.clear()
        assert hub.fetch(f"hf:{NAME}@{commit}") == (folder, pinned)
        assert server.log == []

    def test_a_cut_goes_on_where_it_was(self, server, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
        server.put(NAME, FILES)
        path = "train/weights.safetensors"
        server.cut[path] = 70_000
        folder, _ = hub.fetch(f"hf:{NAME}")
        assert (folder / path).read_bytes() == FILES[path]
        first, second = [row[2] for row in server.seen("GET", path)]
        assert not first
        assert second == f"bytes={70_000}-"

    def test_after_a_failure_what_was_complete_is_not_fetched_again(self, server):
        server.put(NAME, FILES)
        server.failing = {"/train/": 418}
        fails("refuses, 418", hub.fetch, f"hf:{NAME}")
        server.failing.clear()
        hub.fetch(f"hf:{NAME}")
        assert len(server.seen("GET", "config.json")) == 1

    def test_content_that_has_another_hash_is_refused(self, server):
        for path in ("train/weights.safetensors", "config.json"):
            server.put(f"lab/{Path(path).stem}", FILES)
            changed = bytearray(FILES[path])
            changed[-1] ^= 1
            server.wrong = {path: bytes(changed)}
            fails(rf"{path} does not have the hash.*delete", hub.fetch, f"hf:lab/{Path(path).stem}")

    def test_a_file_damaged_in_the_cache_is_noticed(self, server):
        server.put(NAME, FILES)
        folder, _ = hub.fetch(f"hf:{NAME}")
        (folder / "train/weights.safetensors").resolve().write_bytes(b"other")
        fails("does not have the hash", hub.fetch, f"hf:{NAME}")


class TestRefusals:
    def test_no_repository_revision_or_access(self, server):
        fails("no such repository", hub.fetch, "hf:lab/absent")
        server.put(NAME, FILES)
        fails("no such revision", hub.fetch, f"hf:{NAME}@v9")
        fails("no such revision", hub.fetch, f"hf:{NAME}@{'0' * 40}")
        server.repositories[NAME].gated = True
        fails("gives access on request", hub.fetch, f"hf:{NAME}")

    def test_a_hub_out_of_order(self, server):
        server.put(NAME, FILES)
        server.failing = {"/api/models": 503}
        fails("refuses, 503 .*at work on it.*try again later", hub.fetch, f"hf:{NAME}")

    def test_no_network(self, server, tmp_path):
        """In a process of its own: the library reads its address once."""
        script = (
            "from progemu_jax import hub\nfrom progemu_jax.errors import UserError\n"
            "try: hub.fetch('hf:lab/model')\nexcept UserError as error: print(error)"
        )
        env = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
        done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
        assert "the Hub is not reached" in done.stdout
        assert done.stdout.count("\n") == 1
        assert done.stderr == ""

    def test_without_the_extra_it_says_how_to_install_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        for ask in (hub.fetch, progemu_jax.load):
            fails(r"huggingface_hub.*\[hub\]", ask, "hf:lab/model")


class TestLoad:
    def test_a_model_of_the_hub_is_the_folders_and_its_images_name_the_commit(self, server, packed, tmp_path):
        commit = server.put(NAME, contents(packed))
        model, local = progemu_jax.load(f"hf:{NAME}"), progemu_jax.load(packed)
        assert model.name == f"hf:{NAME}@{commit}"
        assert model.hash == local.hash
        assert model.policy == local.policy
        out = model.counterfactual(chest(0, 32), PROMPT, num_samples=1, seed=0)
        out.save(tmp_path / "out")
        facts = provenance.read_png(next((tmp_path / "out").rglob("*.png")))
        assert facts["progemu:checkpoint"] == f"hf:{NAME}@{commit}"
        assert facts["progemu:model"] == local.hash

    def test_weights_that_are_not_those_of_their_record_are_refused(self, server, packed):
        """The Hub's own hash is right: the owner, or who has the owner's token, has put others there."""
        files = contents(packed)
        weights = bytearray(files["train/export/params.safetensors"])
        weights[-1] ^= 64
        server.put(NAME, {**files, "train/export/params.safetensors": bytes(weights)})
        fails("train/export: the export is damaged.*SHA-256", progemu_jax.load, f"hf:{NAME}")

    def test_others_weights_and_a_tokenizer_of_its_own_come_too(self, server, tmp_path):
        source = emu3_folders.checkpoint_folder(tmp_path / "vq", "tokenizer")
        server.put("lab/vq", contents(source))
        folder, _ = hub.fetch("hf:lab/vq")
        assert (folder / safetensors.WEIGHTS).is_symlink()
        assert progemu_jax.load("hf:lab/vq").tokenizer is not None

    def test_the_pictures_and_the_app_ask_once(self, server, packed, tmp_path, monkeypatch):
        commit, fetched, fetch = server.put(NAME, contents(packed)), [], hub.fetch
        monkeypatch.setattr(hub, "fetch", lambda address: (fetched.append(address), fetch(address))[1])
        gallery(f"hf:{NAME}", None, tmp_path / "try", patients=1)
        assert Service.load(f"hf:{NAME}", patients=0).model.name == f"hf:{NAME}@{commit}"
        assert fetched == 2 * [f"hf:{NAME}"]
