"""Readers of what is evaluated: predictions, references, scores, the audit for copies, and of scorers of images."""

import json
import shutil

from progemu_jax.checkpoints import export
from progemu_jax.eval import __main__ as evaluation
from progemu_jax.files.settings import to_dict
from progemu_jax.scorers import __main__ as scorers
from progemu_jax.text.findings import FINDINGS
from support import eval_cohort, small_scorer
from support.fuzz.readers.reader import Reader

MEMORISATION = {
    "training_images": 100, "same": 0.97,
    "generated": {
        "images": 6, "median": 0.5, "greatest": 0.9, "copies": [{"image": "a", "of": "b", "correlation": 0.98}],
    },
    "real": {"images": 6, "median": 0.5, "greatest": 0.9, "copies": []},
}  # fmt: skip


def build(folder):
    """Six cases of three patients, predictions with scores as .npz and the audit, others with scores as .csv."""
    cohort = eval_cohort.Cohort(patients=3, pairs=2)
    cohort.write_references(folder / "references")
    texts = [row["interpretation"] for row in cohort.rows]
    for name in ("ours", "theirs"):
        cohort.write_predictions(folder / name, cohort.after, texts=texts)
    cohort.write_scores(folder / "ours/scores.npz", cohort.after)
    (folder / "ours/memorisation.json").write_text(json.dumps(MEMORISATION))
    lines = [",".join(("pair_id", "sample", "age", "sex_prob", *FINDINGS, *(f"group:{g}" for g in eval_cohort.GROUPS)))]
    lines += [
        f"{row['pair_id']},0,50,0.5{f',0.{k + 1}' * len(FINDINGS)},0.5,0.3,0.2" for k, row in enumerate(cohort.rows)
    ]
    (folder / "theirs/scores.csv").write_text("\n".join(lines) + "\n")
    for name in ("prior", "followup"):
        cohort.write_scores(
            folder / f"references/scores/{name}.npz", cohort.before if name == "prior" else cohort.after
        )


def evaluate():
    return evaluation.main([
        "--predictions=ours", "--predictions=theirs", "--references=references", "--out=out", "--bootstrap=0",
        "--subsamples=0", "--cases=0",
    ])  # fmt: skip


def with_scorer(folder):
    """Cases of one patient, and a small scorer's export."""
    cohort = eval_cohort.Cohort(patients=1, pairs=2)
    cohort.write_references(folder / "references")
    cohort.write_predictions(folder / "ours", cohort.after)
    shutil.rmtree(folder / "references/masks")
    scorer = small_scorer.phantom()
    config = {"kind": "scorer", "net": to_dict(small_scorer.SMALL), "image_size": 32}
    export.export(scorer.params, config, folder / "scorer")


def score():
    return scorers.main(["--scorer=phantom:scorer", "--references=references", "--predictions=ours", "--cache=cache"])


READERS = (
    Reader("predictions", build, evaluate, ("ours/predictions.jsonl", "ours/images/p000-*.png")),
    Reader("references", build, evaluate, ("references/references.jsonl", "references/*/p000-0-*")),
    Reader("scores", build, evaluate, ("ours/scores.npz", "references/scores/prior.npz")),
    Reader("score_tables", build, evaluate, ("theirs/scores.csv", "ours/memorisation.json")),
    Reader(
        "scorers", with_scorer, score, ("scorer/export.json", "references/references.jsonl", "ours/predictions.jsonl"),
        ("cache", "references/scores", "ours/scores.npz"),
    ),
)  # fmt: skip
