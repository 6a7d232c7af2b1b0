"""What the rules read in a prompt, as it goes into files."""

import itertools
import json

from progemu_jax.text.findings import FINDINGS
from progemu_jax.text.understood import MOST_READ, MOST_REST, known, understood


def test_a_statement_that_is_repeated_is_read_once():
    once = understood("New left effusion.")
    assert understood("New left effusion, new left effusion. New left effusion.").read == once.read
    assert len(once.read) == 1


def test_the_summary_is_whole_where_it_is_short_and_cut_where_it_is_long():
    short = understood("New left effusion, hooray.")
    assert short.rest == "hooray"
    assert short.summary() == short.to_dict()
    every = itertools.product(("New", "Worsening", "Resolved"), ("mild", "severe"), FINDINGS)
    long = understood(" ".join(f"{' '.join(words)}, hooray." for words in every))
    assert len(long.read) > MOST_READ
    assert len(long.rest) > MOST_REST
    whole, cut = long.to_dict(), long.summary()
    assert cut == {**whole, "read": whole["read"][:MOST_READ], "rest": whole["rest"][:MOST_REST]}
    assert len(json.dumps(cut)) < 4096


def test_what_can_be_asked_for_is_read():
    for name in known():
        assert [r.finding for r in understood(f"New left {name}.").read] == [name]
    assert len(known()) == len(FINDINGS) - 2  # two of them have two sides
