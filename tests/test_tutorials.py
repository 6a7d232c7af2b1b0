"""The tutorials' blocks of Python run as they stand on the pages, and so do the commands that read what they write."""

import json
import re
import shlex
import shutil
from pathlib import Path

from support.eval_cohort import Cohort

from progemu_jax.config import Config
from progemu_jax.eval import __main__ as evaluation
from progemu_jax.files.settings import from_dict

DOCS = Path(__file__).resolve().parent.parent / "docs"


def blocks(page, language):
    """Blocks of code of a page, in order."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands(page, module):
    """Arguments of each command of a module on a page."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[3:] for line in lines if f"-m {module} " in line]


def test_images_of_another_model_are_judged(tmp_path, monkeypatch):
    cohort = Cohort(patients=4, pairs=1)
    cohort.write_references(tmp_path / "runs/judge/data/references")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("tutorial_judge.md", "python")
    exec(compile(block, "tutorial_judge.md", "exec"), {"__name__": "__main__"})
    assert len(list(Path("theirs").glob("*.png"))) == len(cohort.rows)
    first, second, controlled = commands("tutorial_judge.md", "progemu_jax.eval")
    assert first == second
    assert evaluation.main([*first, "--bootstrap=0", "--subsamples=0"]) == 0
    found = json.loads(Path("judged/metrics.json").read_text())["systems"]
    assert found["theirs"]["metrics"]["mae_prior"]["value"] > found["copy"]["metrics"]["mae_prior"]["value"] == 0
    assert Path("judged/report/index.html").is_file()
    shutil.copytree("theirs", "theirs-asked-otherwise")
    assert evaluation.main([*controlled, "--bootstrap=0", "--subsamples=0"]) == 0
    roles = {name: row["role"] for name, row in json.loads(Path("judged/metrics.json").read_text())["systems"].items()}
    assert (roles["theirs"], roles["contradicting"]) == ("system", "control")


def test_the_config_of_the_cohort_is_one(tmp_path):
    space = {}
    (block,) = [block for block in blocks("tutorial_cohort.md", "python") if "get_config" in block]
    exec(compile(block, "cohort.py", "exec"), space)
    config = from_dict(Config, space["get_config"]().to_dict())
    assert (config.data.source, config.data.root, config.data.journeys.test) == ("folder", "films", 0.2)
