"""Score systems against references: metrics.json, tables and a self-contained report/index.html.

Rows of the table: every system given; and, computed beside them, copy-the-prior, the mean image, echo-the-prompt
(text only), the tokenizer-reconstructed follow-up, the real follow-up (ceiling), on the phantom the true
counterfactual, and, where there are features, real follow-ups against real ones (the floor of FID and its like).
Images of prior, follow-up and counterfactual are the references' own; the mean image is theirs too.
Controls (contradicting prompts, null prompt) are a system's answers to other prompts than the references'; they are
judged by their own prompts, and by the rendered true answers to them where there is a folder of those.

All systems are compared on the cases that every one of them has; what is left out is named. Nothing here
needs scores: without them only image and text metrics are defined.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from progemu_jax.errors import UserError
from progemu_jax.eval.bootstrap import Bootstrap, estimate
from progemu_jax.eval.case_sheet import write_sheet
from progemu_jax.eval.case_table import write_case_table
from progemu_jax.eval.compare import differences, tests
from progemu_jax.eval.definitions import METRICS
from progemu_jax.eval.external import external_tables, read_results
from progemu_jax.eval.measure import Candidate, Truth, measure
from progemu_jax.eval.measure_features import FLOOR, FLOOR_NOTE, measure_fidelity
from progemu_jax.eval.metrics.cmig import cmig
from progemu_jax.eval.metrics.fidelity import NAMES, SUBSAMPLES
from progemu_jax.eval.metrics.retention import normalised
from progemu_jax.eval.metrics.roc import RELIABLE
from progemu_jax.eval.paper_tables import write_paper
from progemu_jax.eval.predictions import Rows, read_predictions, read_references
from progemu_jax.eval.report import write_report
from progemu_jax.eval.scores import Scores, name_ids, read_features, read_memorisation, read_scores
from progemu_jax.eval.tables import write_tables
from progemu_jax.files.records import digest, write_text

SCHEMA = 2
FINDING_METRICS = ("finding_auroc", "finding_auprc", "finding_auroc_changed", "finding_f1")
CMIG_TERMS = {"accuracies": ["finding_auroc"], "retentions": ["group_auroc", "age_r"]}
RETENTIONS = {
    "group_retention": ("group_auroc", 0.5),
    "age_retention": ("age_r", 0.0),
    "sex_retention": ("sex_auroc", 0.5),
}
TITLES = {
    "ours": "Ours",
    "progemu": "ProgEmu-JAX",
    "copy": "Copy the prior",
    "shuffled": "Shuffled prompts",
    "text_only": "Text only (no prior image)",
    "mean_image": "Mean image",
    "contradicting": "Contradicting prompts",
    "contradicting_answers": "Contradicting prompts, rendered answers",
    "null_edit": "Null prompt",
    "null_edit_answers": "Null prompt, rendered answers",
    "echo": "Echo the prompt",
    "prior_reconstruction": "Reconstructed prior (no edit)",
    "reconstruction": "Reconstructed follow-up",
    "reconstruction_with_prior": "Reconstructed follow-up, with the prior",
    "answers": "Rendered answers to the prompts",
    "followup": "Real follow-up",
    "counterfactual": "True counterfactual",
    FLOOR: "Real against real follow-ups, halves",
}
BASELINES = ("copy", "mean_image", "shuffled", "text_only", "echo", "prior_reconstruction")
CONTROLS = ("contradicting", "contradicting_answers", "null_edit", "null_edit_answers")
CEILINGS = ("reconstruction", "reconstruction_with_prior", "answers", "followup", "counterfactual")
# Row of the table -> name of the reference scores it is computed from.
REFERENCE_ROWS = {
    "copy": "prior",
    "mean_image": "mean",
    "prior_reconstruction": "prior_reconstruction",
    "reconstruction": "reconstruction",
    "followup": "followup",
    "counterfactual": "counterfactual",
}


@dataclass(frozen=True)
class System:
    """Where a system's outputs are.

    Attributes:
      predictions: predictions folder (`predictions.jsonl` + PNG files).
      scores: score file of those images (`.npz`), or None: metrics that need a scorer are then undefined.
      title: name on the page; by default from the key.
      note: one line of explanation on the page.
      memorisation: the audit of those images (`data.memorisation`), or None.
      results: protocol (of `external.TITLES`) -> the file in which another evaluation wrote what it found.
    """

    predictions: str | os.PathLike
    scores: str | os.PathLike | None = None
    title: str | None = None
    note: str = ""
    memorisation: str | os.PathLike | None = None
    results: dict = field(default_factory=dict)


def evaluate(
    systems,
    references,
    reference_scores=None,
    out="report",
    *,
    bootstrap=1000,
    seed=0,
    title="Counterfactual chest X-rays",
    caveats=(),
    cases_shown=12,
    subsamples=SUBSAMPLES,
    text_models=(),
    features=None,
    log=print,
):
    """Score `systems` and write `out`/metrics.json, tables, cases.csv and `out`/report/index.html.

    Args:
      systems: dict key -> System. The first is the one under test: differences and cases are its own. The
        keys shuffled (or shuffled-prompts), text_only, reconstruction, ... get their usual title; a key that
        names a built-in row (copy, echo, reconstruction, followup, counterfactual) replaces that row.
      references: folder of `references.jsonl`.
      reference_scores: dict of score files of the references' images, of any of prior, followup,
        counterfactual, mean, reconstruction, prior_reconstruction; missing ones only leave metrics undefined.
      out: folder to write to.
      bootstrap: resamples of patients (0: no intervals).
      seed: of the resamples and of the choice of cases shown.
      title, caveats: of the page; caveats is a list of sentences.
      cases_shown: cases on the sheet, drawn at random, not by result.
      subsamples: half-samples behind the intervals of FID and its like, at most 50.
      text_models: of chexbert, radgraph, green, radeval; their packages must be installed.
      features: an npz file of any network's features of all systems (`scores.read_features`), in place of those of the
        score files; None: theirs.
      log: called with one line for each warning.

    Returns:
      The content of metrics.json (dict).

    Raises:
      UserError: unreadable or inconsistent input, no case in common.
    """
    external = {
        _canonical(key): {protocol: read_results(protocol, path, key) for protocol, path in system.results.items()}
        for key, system in systems.items()
        if system.results
    }
    systems = {_canonical(key): system for key, system in systems.items()}
    if not systems:
        raise UserError("no predictions to evaluate: give at least one predictions folder")
    refs = read_references(references)
    rows = {key: read_predictions(system.predictions, refs) for key, system in systems.items()}
    audits = {key: read_memorisation(s.memorisation) for key, s in systems.items() if s.memorisation is not None}
    warnings = _warn_missing(refs, rows, systems)
    common = set.intersection(*({refs.pair_ids[i] for i in r.case} for r in rows.values()))
    if not common:
        raise UserError(
            f"no case is in all of {', '.join(str(s.predictions) for s in systems.values())}; "
            "sample the same cases for each system"
        )
    refs, rows = _restrict(refs, rows, common)

    reference_scores = {k: read_scores(p, refs.findings) for k, p in (reference_scores or {}).items() if p is not None}
    features = {_canonical(key): found for key, found in read_features(features).items()} if features else None
    real = features["followup"] if features else reference_scores.get("followup")
    truth = Truth(refs, reference_scores.get("prior"), reference_scores.get("followup"), real)
    candidates = _candidates(systems, rows, refs, reference_scores, real is not None and real.features is not None)
    warnings += _warn_scores(candidates, reference_scores)
    if features:
        warnings += _take_features(candidates, features)
    for line in warnings:
        log(f"evaluate: {line}")

    boot = Bootstrap(truth.patients, bootstrap, seed)
    measured = measure(candidates, truth, boot, text_models)
    derive(measured)
    for c in candidates:
        measure_fidelity(c, truth, measured[c.key], subsamples if boot.resamples else 0, seed)
    result = _result(candidates, measured, refs, truth, boot, seed)
    result.update(title=title, caveats=list(caveats), warnings=warnings, external=external)
    for key, audit in audits.items():
        result["systems"][key]["memorisation"] = audit

    out = Path(out)
    try:
        (out / "report").mkdir(parents=True, exist_ok=True)
        write_text(out / "metrics.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
        write_tables(result, out, external_tables(result))
        write_paper(result, out)
        write_case_table(out / "cases.csv", candidates, measured, refs)
        page = write_report(result, candidates, measured, refs, cases_shown=cases_shown, seed=seed)
        write_sheet(out / "report" / "cases.png", candidates[0], refs, seed=seed)
        write_text(out / "report" / "index.html", page)
    except OSError as error:
        raise UserError(
            f"{error.filename or out}: cannot be written ({error.strerror}); mend that or choose another folder"
        ) from None
    return result


def _warn_missing(refs, rows, systems):
    lines, total = [], len(refs.pair_ids)
    anywhere = {refs.pair_ids[i] for r in rows.values() for i in r.case}
    never = [p for p in refs.pair_ids if p not in anywhere]
    if never:
        lines.append(f"{len(never)} of {total} cases of the references were not sampled ({name_ids(never)})")
    for key, r in rows.items():
        have = {refs.pair_ids[i] for i in r.case}
        lost = [p for p in refs.pair_ids if p in anywhere and p not in have]
        if lost:
            lines.append(
                f"{systems[key].predictions}: {len(lost)} of {total} cases missing "
                f"({name_ids(lost)}); all systems are compared without them"
            )
    return lines


def _restrict(refs, rows, common):
    small = refs.take(common)
    out = {}
    for key, r in rows.items():
        keep = np.array([k for k, i in enumerate(r.case) if refs.pair_ids[i] in common])
        r = r.select(keep)
        r.case = np.array([small.index[refs.pair_ids[i]] for i in r.case])
        out[key] = r
    return small, out


def _canonical(key):
    """'shuffled-prompts' -> 'shuffled', 'text-only' -> 'text_only', ...: folder names of known rows."""
    owner, colon, kind = key.rpartition(":")
    kind = kind.replace("-", "_")
    known = {
        "shuffled_prompts": "shuffled", "copy_the_prior": "copy", "echo_the_prompt": "echo",
        "contradicting_prompts": "contradicting", "null_prompt": "null_edit",
        "contradicting_prompts_answers": "contradicting_answers", "null_prompt_answers": "null_edit_answers",
    }  # fmt: skip
    return owner + colon + known.get(kind, kind)


def _role(key):
    """Role of a row; a control may carry the name of its system in front: `ours:contradicting`."""
    for role, keys in (("baseline", BASELINES), ("control", CONTROLS), ("ceiling", CEILINGS)):
        if key.rpartition(":")[2] in keys:
            return role
    return "system"


def _title(key):
    owner, _, kind = key.rpartition(":")
    title = TITLES.get(kind, kind)
    return f"{title} ({owner})" if owner else title


def _take_features(candidates, features):
    """Gives each candidate its features of the file, or none; returns a line where systems have none."""
    for c in candidates:
        c.features = features.get(REFERENCE_ROWS[c.key] if c.image_kind else c.key, Scores(None, {}))
    without = [c.title for c in candidates if c.role == "system" and c.features.features is None]
    return [f"no features of {', '.join(without)} in the file: FID and its like are undefined there"] if without else []


def _candidates(systems, rows, refs, reference_scores, featured):
    made = {}
    for key, system in systems.items():
        scored = system.scores is not None and rows[key].images is not None
        scores = read_scores(system.scores, refs.findings) if scored else None
        made[key] = Candidate(key, system.title or _title(key), _role(key), rows[key], scores, None, system.note)
        made[key].answers = _answers(key, rows)
    n = len(refs.rows)
    plain = lambda texts: Rows(np.arange(n), np.zeros(n, int), [r["prompt"] for r in refs.rows], texts, None)  # noqa: E731
    if "echo" not in made:
        made["echo"] = Candidate("echo", TITLES["echo"], "baseline", plain([r["prompt"] for r in refs.rows]))
    for key, name in REFERENCE_ROWS.items():
        kind = name if name in ("prior", "followup", "counterfactual", "mean") else None
        if kind == "counterfactual" and not all(r.get("counterfactual") for r in refs.rows):
            kind = None
        scores = reference_scores.get(name)
        if key in made or (kind is None and scores is None):
            continue
        texts = [r["interpretation"] for r in refs.rows] if key == "followup" else None
        made[key] = Candidate(key, TITLES[key], _role(key), plain(texts), scores, kind)
    order = [k for role in ("system", "baseline", "control", "ceiling") for k in _of_role(role, made)]
    if next(iter(systems)) not in order[:1]:  # the system under test comes first, whatever it is called
        order = [next(iter(systems))] + [k for k in order if k != next(iter(systems))]
    if FLOOR not in made and featured:
        made[FLOOR] = Candidate(FLOOR, TITLES[FLOOR], "floor", plain(None), note=FLOOR_NOTE)
        order.append(FLOOR)
    return [made[k] for k in order]


def _answers(key, rows):
    """For each row of a system the rendered true answer to its prompt (a path), or None; None where none has one.

    A control's answers are its own; every other system is given the references' prompts.
    """
    kind = f"{key.rpartition(':')[2]}_answers"
    there = rows.get(f"{key}_answers", rows.get(kind)) if _role(key) == "control" else rows.get("answers")
    if _role(key) == "ceiling" or there is None or there.images is None:
        return None
    paths = {(case, prompt): path for case, prompt, path in zip(there.case, there.prompts, there.images, strict=True)}
    found = [paths.get(asked) for asked in zip(rows[key].case, rows[key].prompts, strict=True)]
    return found if any(found) else None


def _of_role(role, keys):
    """Keys of one role: systems in the order given, the others in the order of the tables."""
    keys = [k for k in keys if _role(k) == role]
    known = (*BASELINES, *CONTROLS, *CEILINGS)
    return keys if role == "system" else sorted(keys, key=lambda k: known.index(k.rpartition(":")[2]))


def _warn_scores(candidates, reference_scores):
    lines = []
    without = [c.title for c in candidates if c.scores is None and c.has_images]
    if without:
        lines.append(f"no scores for {', '.join(without)}: metrics that need a scorer are undefined there")
    if any(c.scores is not None for c in candidates):
        lines += [
            f"no scores of the references' {n} images: {what} undefined"
            for n, what in (("prior", "direction and copy-the-prior"), ("followup", "KL and the ceiling"),
                            ("reconstruction", "the gap closed"))
            if n not in reference_scores
        ]  # fmt: skip
        columns = {c.scores.findings for c in candidates if c.scores is not None and c.scores.findings}
        if len(columns) > 1:
            raise UserError(
                "score files name different findings: "
                + "; ".join(str(c.scores.path) for c in candidates if c.scores is not None)
                + "; score all images with one scorer"
            )
    return lines


def derive(measured):
    """Metrics made of others: CMIG, retention relative to the ceiling, gap closed."""
    ceiling = measured.get("followup")
    copy, best = measured.get("copy"), measured.get("reconstruction")
    for m in measured.values():
        d = m.distributions
        terms = [[d[k] for k in CMIG_TERMS[part] if k in d] for part in ("accuracies", "retentions")]
        if all(len(t) == len(CMIG_TERMS[p]) for t, p in zip(terms, ("accuracies", "retentions"), strict=True)):
            d["cmig"] = cmig(*terms)
            for key in CMIG_TERMS["accuracies"] + CMIG_TERMS["retentions"]:
                m.flags.setdefault("cmig", []).extend(m.flags.get(key, []))
        for key, (source, chance) in RETENTIONS.items():
            if ceiling is not None and source in d and source in ceiling.distributions:
                d[key] = normalised(d[source], ceiling.distributions[source], chance)
        if copy is None or best is None:
            continue
        gaps, key = [], "finding_auroc_changed"
        for finding, parts in m.findings.items():
            if key in parts and key in copy.findings.get(finding, {}) and key in best.findings.get(finding, {}):
                base = copy.findings[finding][key]
                parts["gap_closed"] = normalised(parts[key], best.findings[finding][key], base)
                if np.isfinite(parts["gap_closed"][0]):
                    gaps.append(parts["gap_closed"])
        if key in m.distributions:
            d["gap_closed"] = np.mean(gaps, axis=0) if gaps else np.full_like(d[key], np.nan)
            m.flags.setdefault("gap_closed", []).extend(m.flags.get(key, []))


def _result(candidates, measured, refs, truth, boot, seed):
    systems = {}
    for c in candidates:
        m = measured[c.key]
        systems[c.key] = {
            "title": c.title,
            "role": c.role,
            "note": c.note,
            "samples": len(c.rows),
            "info": c.rows.info,
            "metrics": {
                k: estimate(m.distributions[k], flags=dict.fromkeys(m.flags.get(k, []))).to_json()
                for k in METRICS
                if k in m.distributions
            },
            "parts": {
                part: {
                    **{k: estimate(v, flags=_few(k, m.counts.get(part))).to_json() for k, v in values.items()},
                    **({"counts": m.counts[part]} if part in m.counts else {}),
                }
                for part, values in m.findings.items()
            },
            "features": m.features,
            "notes": m.notes,
        }
    asked = sorted([row["pair_id"], row["prompt"], row["interpretation"]] for row in refs.rows)
    return {
        "schema": SCHEMA,
        "references": digest(asked),
        "cases": len(refs.rows),
        "patients": truth.patients,
        "sources": sorted({str(r.get("source")) for r in refs.rows}),
        "splits": sorted({str(r.get("split")) for r in refs.rows}),
        "image_size": list(refs.shape),
        "bootstrap": {
            "resamples": boot.resamples,
            "seed": seed,
            "unit": "patient",
            "interval": "95 % percentile",
        },
        "cmig_terms": CMIG_TERMS,
        "systems": systems,
        "differences": differences(candidates, measured),
        "tests": tests(candidates, measured),
        "definitions": {k: m.definition for k, m in METRICS.items()},
    }


def _few(metric, counts):
    """The flag of one finding's metric with fewer than 20 positives or negatives, or images."""
    if counts is not None and metric in NAMES and counts["images"] < RELIABLE:
        return (f"{counts['images']} images: fewer than {RELIABLE}",)
    if counts is None or metric not in (*FINDING_METRICS, "gap_closed"):
        return ()
    prefix = "changed_" if metric in ("finding_auroc_changed", "gap_closed") else ""
    positives, negatives = counts[prefix + "positives"], counts[prefix + "negatives"]
    if min(positives, negatives) >= RELIABLE:
        return ()
    return (f"{positives} positives, {negatives} negatives: fewer than {RELIABLE}",)
