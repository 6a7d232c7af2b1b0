"""The data stage on Apache Beam: the same bytes as without it. Needs the extra [beam]: `make test-beam`."""

import pytest
from support import cohorts

from progemu_jax.data.build import build
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError
from progemu_jax.files import records

# The local runner without Prism, a binary that DirectRunner would download first.
RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
OPTIONS = {"pairs": "all"}


def test_without_beam_it_is_one_clear_line(tmp_path):
    try:
        import apache_beam  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"\[beam\]"):
            build("mimic_cxr", tmp_path, tmp_path / "out", beam=["--runner=DirectRunner"])
        assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    root = cohorts.write(tmp_path_factory.mktemp("in"), patients=12, studies=3)
    (broken,) = (root / "files/p10/p10000000/s50000001").iterdir()
    broken.write_bytes(broken.read_bytes()[:200])
    return root


@pytest.mark.beam
@pytest.mark.parametrize(("pairs", "texts", "history"), [("all", "impression", 0), ("both", "rules", 2)])
def test_the_same_bytes_with_and_without_beam(cohort, tmp_path, pairs, texts, history):
    pytest.importorskip("apache_beam")
    options = {"pairs": pairs, "history": history}
    common = {"size": 64, "image_size": 32, "options": options, "text_options": TextOptions(texts)}
    build("mimic_cxr", cohort, tmp_path / "a", processes=1, progress=False, **common)
    build("mimic_cxr", cohort, tmp_path / "b", progress=False, beam=[f"--runner={RUNNER}"], **common)
    a, b = cohorts.files(tmp_path / "a"), cohorts.files(tmp_path / "b")
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] != b[name]} == set()


@pytest.mark.beam
def test_a_broken_image_of_the_tree_is_listed(cohort, tmp_path):
    pytest.importorskip("apache_beam")
    from progemu_jax.data import icg_cxr

    build("mimic_cxr", cohort, tmp_path, size=64, image_size=32, options=OPTIONS, processes=1, progress=False)
    victim = next((tmp_path / "tree/mimic_cxr").rglob("*-flu-reg.png"))
    victim.write_bytes(b"")
    icg_cxr.build_shards(tmp_path / "tree", tmp_path / "again", 32, progress=False, beam=[f"--runner={RUNNER}"])
    rejected = [row for _, row in records.read_lines(tmp_path / "again/rejected.jsonl")]
    assert [row["reason"] for row in rejected] == ["broken image: neither PNG nor JPEG"]
    assert not list((tmp_path / "again").glob(".rejected*"))
