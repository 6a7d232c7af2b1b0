"""What the offline rules make of phantom report pairs whose states are known; prints one JSON line.

    python benchmarks/texts.py [--pairs=200] [--seed=0] [--kind=consecutive]

A change is a finding (with its side, where it has one) and a direction: new or worse, better or gone. Counted are the
changes of the rules, and those read back from the interpretation and the prompt that were written, against the
changes of the states. `pairs_right`: pairs of which every change is right and none is made up. --kind: consecutive;
reversed, the same pairs with the later study as the prior; apart, first and third study; apart-reversed; all, first and
third study as `data.journeys.pairs=all` takes them, the third report's words of a change counted.
"""

import argparse
import json

import numpy as np

from progemu_jax.data.phantom import reports
from progemu_jax.data.phantom.patient import sample_patient, sample_trajectory
from progemu_jax.data.progression import progression
from progemu_jax.text import findings, rules

KINDS = {  # places of prior and follow-up among a patient's studies, whose words of a change hold
    "consecutive": (0, 1, "forward"), "reversed": (1, 0, "reversed"), "apart": (0, 2, None),
    "apart-reversed": (2, 0, None), "all": (0, 2, "forward"),
}  # fmt: skip
SIGN = {"new": 1, "worse": 1, "better": -1, "resolved": -1}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="consecutive")
    args = parser.parse_args()
    prior, followup, said = KINDS[args.kind]
    studies = 1 + max(prior, followup)
    rng = np.random.default_rng(args.seed)
    places = ("rules", "interpretation", "prompt")
    found, right, whole, changes = (dict.fromkeys(places, 0) for _ in range(4))
    for _ in range(args.pairs):
        patient = sample_patient(rng)
        states = sample_trajectory(rng, patient, studies)
        texts = [
            reports.report(rng, patient, state, last) for state, last in zip(states, [None, *states[:-1]], strict=True)
        ]
        before, after = states[prior], states[followup]
        made = progression(texts[prior], texts[followup], said)
        truth = {(f, SIGN[s]) for f in findings.FINDINGS if (s := reports.status(f, after, before)) in SIGN}
        told = (made.changes, rules.changes(made.interpretation), rules.changes(made.prompt))
        for place, values in zip(places, told, strict=True):
            values = {(f, v) for f, v in values.items() if v}
            found[place] += len(values)
            right[place] += len(values & truth)
            changes[place] += len(truth)
            whole[place] += values == truth
    row = {"pairs": args.pairs, "kind": args.kind, "seed": args.seed, "changes": changes["rules"]}
    for place in places:
        row[f"{place}_precision"] = round(right[place] / max(1, found[place]), 4)
        if place != "prompt":  # one or two sentences: it leaves changes out on purpose
            row[f"{place}_recall"] = round(right[place] / max(1, changes[place]), 4)
            row[f"{place}_pairs_right"] = round(whole[place] / args.pairs, 4)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
