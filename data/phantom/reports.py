"""The report of a phantom study: Findings and Impression in varied radiology language.

Every present finding is described with its side and grade and, where there is an earlier study, with how it
changed, sometimes after what treatment; findings that resolved are said to have resolved; some of the absent ones are
denied. The wording is drawn from a generator, so one state has many reports.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from progemu_jax.text.findings import FINDINGS, PRESENT, side_and_noun
from progemu_jax.text.rules import LARGE, MODERATE
from progemu_jax.text.wording_frames import CAUSES

_SIZE = (("trace", "tiny", "small", "small"), ("moderate", "moderate-sized"), ("large",))
_DEGREE = (("minimal", "mild", "mild"), ("moderate",), ("severe", "marked"))

_PRESENT = (
    "There is {a} {grade} {noun}.",
    "{a} {grade} {noun} is present.",
    "{a} {grade} {noun} is seen.",
    "{grade} {noun}.",
    "{grade} {noun} is noted.",
)
_NEW = (
    "There is {a} new {grade} {noun}.",
    "New {grade} {noun}.",
    "Interval development of {a} {grade} {noun}.",
    "{a} {grade} {noun} has developed since the prior study.",
    "{grade} {noun} is new compared with the prior radiograph.",
)
_WORSE = (
    "{noun} has increased and is now {grade}.",
    "Interval increase in {noun}, now {grade}.",
    "Worsening {noun}, now {grade}.",
    "{noun} has worsened since the prior study and is {grade}.",
    "{grade} {noun}, increased from the prior study.",
    "There has been interval worsening of {noun}, which is {grade}.",
)
_BETTER = (
    "{noun} has decreased and is now {grade}.",
    "Interval decrease in {noun}, now {grade}.",
    "Improving {noun}, now {grade}.",
    "{noun} has improved since the prior study and is {grade}.",
    "{grade} {noun}, decreased from the prior study.",
    "There has been interval improvement in {noun}, which is {grade}.",
)
_SAME = (
    "Unchanged {grade} {noun}.",
    "{grade} {noun} is unchanged.",
    "{grade} {noun} is stable.",
    "Persistent {grade} {noun}.",
    "{grade} {noun} persists, similar to the prior study.",
    "There is no significant change in {grade} {noun}.",
)
_RESOLVED = (
    "{noun} has resolved.",
    "The previously seen {noun} is no longer present.",
    "Interval resolution of {noun}.",
    "Previously noted {noun} has cleared.",
)
_TEMPLATES = {
    "present": _PRESENT,
    "new": _NEW,
    "worse": _WORSE,
    "better": _BETTER,
    "same": _SAME,
    "resolved": _RESOLVED,
}
_SHORT = {
    "present": ("{grade} {noun}.",),
    "new": ("New {grade} {noun}.",),
    "worse": ("Increased {noun}, now {grade}.", "Worsening {noun}.", "Increased {noun}."),
    "better": ("Decreased {noun}, now {grade}.", "Improving {noun}.", "Decreased {noun}."),
    "same": ("Unchanged {grade} {noun}.", "Stable {noun}."),
    "resolved": ("Resolved {noun}.", "Interval resolution of {noun}."),
}
_OPENINGS = (
    "",
    "",
    "Compared with the prior study, there is interval change.",
    "The lungs are well expanded.",
)
_CLOSINGS = (
    "",
    "",
    "No acute osseous abnormality.",
    "Osseous structures are intact.",
    "The mediastinum is normal.",
)


def status(finding: str, state, previous) -> str:
    """ "present" (no earlier study), "new", "worse", "better", "same", "resolved" or "absent".

    A change of the severity counts from `radtext.PRESENT` on, and so does crossing it.
    """
    i = FINDINGS.index(finding)
    now = float(state.severities[i])
    if previous is None:
        return "present" if now >= PRESENT else "absent"
    before = float(previous.severities[i])
    if now < PRESENT:
        return "resolved" if before >= PRESENT else "absent"
    if before < PRESENT:
        return "new"
    if abs(now - before) >= PRESENT:
        return "worse" if now > before else "better"
    return "same"


def report(
    rng: np.random.Generator, patient, state, previous_state=None, treated: Collection[str] = ()
) -> dict[str, str]:
    """Writes the report of one study.

    Args:
      rng: draws the wording only.
      patient: phantom.Patient; None is allowed.
      state: phantom.State (severities float [8] in the order of FINDINGS; atelectasis_side and
        consolidation_side: 1 left, -1 right, 0 both; absent attributes are not mentioned).
      previous_state: state of the study before, or None for a first study.
      treated: findings whose treatment began since then; of those that are better or resolved, half are said to be so
        after a treatment.

    Returns:
      {"findings": text, "impression": text}, both ASCII, without line breaks.
    """
    del patient
    found = {name: status(name, state, previous_state) for name in FINDINGS}
    items = _items(rng, found, state, previous_state, treated)
    order = rng.permutation(len(items))
    sentences = [_sentence(rng, _pick(rng, _TEMPLATES[items[i][1]]), *items[i]) for i in order]
    absent = _absent(rng, found)
    sentences = (sentences + absent) if rng.random() < 0.6 else (absent + sentences)
    opening = _pick(rng, _OPENINGS if previous_state is not None else ("", "The lungs are well expanded."))
    findings = " ".join(s for s in [opening, *sentences, _pick(rng, _CLOSINGS)] if s)
    return {"findings": findings, "impression": _impression(rng, items, previous_state)}


def _pick(rng, options):
    return options[int(rng.integers(len(options)))]


def _items(rng, found, state, previous, treated):
    """[(finding or "bilateral ...", status, grade 0..2, cause or "")]; two like sides are sometimes told as one."""
    grade = {name: int(v >= MODERATE) + int(v >= LARGE) for name, v in zip(FINDINGS, state.severities, strict=True)}
    items = []
    for i, name in enumerate(FINDINGS):
        if found[name] != "absent":
            noun = _noun(rng, name, state if found[name] != "resolved" else previous)
            items.append((noun, found[name], grade[name], _cause(rng, name, found[name], treated)))
        other = FINDINGS[i - 1]
        pair = name.startswith("right") and found[name] != "absent"
        if pair and found[other] == found[name] and grade[other] == grade[name] and rng.random() < 0.7:
            cause = items[-1][3] if items[-2][3] else ""
            items[-2:] = [(_noun(rng, name.replace("right", "bilateral"), state), found[name], grade[name], cause)]
    return items


def _cause(rng, name, status, treated):
    if name not in treated or status not in ("better", "resolved") or rng.random() < 0.5:
        return ""
    return _pick(rng, CAUSES[side_and_noun(name)[1], status])


def _noun(rng, name, state):
    """A noun phrase for the finding: its synonyms, and its side where it has one. Starts in lower case."""
    side, _, what = name.partition(" ")
    if side in ("left", "right"):
        forms = ("{s} {w}", "{s} {w}", "{s}-sided {w}") + (("{w} on the {s}",) if "effusion" in what else ())
        return _pick(rng, forms).format(s=side, w=what)
    if side == "bilateral":
        return f"bilateral {_pick(rng, _PLURAL[what])}"
    if name == "cardiomegaly":
        return _pick(rng, ("cardiomegaly", "cardiomegaly", "enlargement of the cardiac silhouette"))
    if name == "pulmonary edema":
        return _pick(rng, ("pulmonary edema", "interstitial edema", "pulmonary edema", "perihilar edema"))
    where = {1: "left", -1: "right", 0: "bilateral"}.get(getattr(state, f"{name}_side", None))
    if where is None:
        return name
    if name == "atelectasis":
        return f"{where} {_pick(rng, ('basilar', 'lower lobe', 'basal'))} atelectasis"
    zone = getattr(state, "consolidation_zone", 0.5)
    lobe = "upper" if zone < 1 / 3 else "lower" if zone > 2 / 3 else "mid"
    return _pick(rng, (f"{where} {lobe} lung consolidation", f"consolidation in the {where} {lobe} lung"))


_PLURAL = {"pleural effusion": ("pleural effusions",), "pneumothorax": ("pneumothoraces", "pneumothorax")}


def _sentence(rng, template, noun, status, grade, cause):
    sized = "effusion" in noun or "pneumothora" in noun
    word = _pick(rng, (_SIZE if sized else _DEGREE)[grade])
    plural = noun.startswith("bilateral") and noun.endswith(("effusions", "pneumothoraces"))
    counted = sized and not plural
    text = template.format(a="a" if counted else "", grade=word, noun=noun)
    if plural:
        for one, many in ((" is ", " are "), (" has ", " have "), ("persists", "persist")):
            text = text.replace(one, many)
        text = text.replace("There have been", "There has been").replace("There are no sig", "There is no sig")
    text = " ".join(text.split()).removesuffix(".") + f"{cause}."
    return text[0].upper() + text[1:]


def _absent(rng, found):
    """One or two sentences that deny absent findings; the heart has a sentence of its own."""
    names = []
    for what, plain in (("pneumothorax", "pneumothorax"), ("pleural effusion", "pleural effusion")):
        sides = [s for s in ("left", "right") if found[f"{s} {what}"] == "absent"]
        if len(sides) == 2:
            names.append(plain)
        elif sides and rng.random() < 0.4:
            names.append(f"{sides[0]} {what}")
    names += [n for n in ("pulmonary edema", "consolidation", "atelectasis") if found[n] == "absent"]
    sentences = []
    if names:
        keep = [names[i] for i in rng.permutation(len(names))[: int(rng.integers(1, len(names) + 1))]]
        lead = _pick(rng, ("No", "No", "There is no", "No evidence of", "Without evidence of"))
        joined = keep[0] if len(keep) == 1 else ", ".join(keep[:-1]) + _pick(rng, (" or ", ", or ")) + keep[-1]
        sentences.append(f"{lead} {joined}.")
    if found["cardiomegaly"] == "absent" and rng.random() < 0.8:
        sentences.append(_pick(rng, ("Heart size is normal.", "The heart is not enlarged.", "Normal heart size.")))
    return sentences


_WEIGHT = {"new": 0, "worse": 0, "better": 1, "resolved": 1, "present": 2, "same": 3}


def _impression(rng, items, previous):
    """The changes first, then what persists; at most four items."""
    if not items:
        text = ("No acute cardiopulmonary process.", "No acute cardiopulmonary abnormality.")
        return _pick(rng, text if previous is None else (*text, "No significant change."))
    ranked = sorted(items, key=lambda item: (_WEIGHT[item[1]], -item[2]))[: 3 + int(rng.integers(2))]
    sentences = [_sentence(rng, _pick(rng, _SHORT[item[1]]), *item) for item in ranked]
    if rng.random() < 0.25 and len(sentences) > 1:
        sentences = [f"{i}. {s}" for i, s in enumerate(sentences, 1)]
    return " ".join(sentences)
