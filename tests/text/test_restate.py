"""Free language: the grammar, what it holds out, reading back, the vocabulary that carries it."""

import dataclasses
import functools
import json
import re

import numpy as np
import pytest
import regex

from progemu_jax.data.phantom import patient as phantom
from progemu_jax.data.phantom.reports import report
from progemu_jax.data.phantom.train_radiology_vocabulary import random_change
from progemu_jax.data.progression import progression
from progemu_jax.errors import UserError
from progemu_jax.text import (
    controls,
    noise,
    prompt_changes,
    restate,
    rules,
    vocabulary,
    wording_frames,
    wording_nouns,
    wordings,
)
from progemu_jax.text.findings import FINDINGS, NO_CHANGE
from progemu_jax.text.prompt_changes import changes_of, restated
from progemu_jax.text.restate import Change
from progemu_jax.text.understood import understood

FAMILIES = [f for table in wordings.FAMILIES.values() for f in table]
NOUNS = [n for table in wording_nouns.NOUNS.values() for n in table]
FRAMES = [f for d in ("new", "worse", "resolved", "same") for table in wording_frames.FRAMES[d].values() for f in table]
CLAUSES = [c for table in wording_frames.CLAUSES.values() for c in table]
SIGN = {"new": 1, "worse": 1, "better": -1, "resolved": -1, "same": 0}


@functools.cache
def drawn(part, number, seed=0, held=restate.HELD, slips=0.0):
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(number):
        change = random_change(rng)
        out.append((change, restate.restate([change], rng, part, held=held, noise=slips)))
    return out


def pattern(forms):
    """Any of the forms as words; slots of sides and places stand for any words."""
    texts = (re.escape(form.lower()) for form in sorted(forms))
    texts = (text.replace(r"\{s\}", "(?:left|right)").replace(r"\{w\}", r"\w+") for text in texts)
    return re.compile(r"(?<!\w)(?:" + "|".join(texts) + r")(?!\w)")


# ------------------------------------------------------------------------------------------------ tables


def test_a_fifth_of_every_table_is_held_out():
    for name, table in {**wordings.FAMILIES, **wording_nouns.NOUNS}.items():
        share = sum(entry.held for entry in table) / len(table)
        assert 0.15 <= share <= 0.25, (name, share)
    for direction, styles in wording_frames.FRAMES.items():
        frames = [frame for table in styles.values() for frame in table]
        share = sum(frame.startswith("* ") for frame in frames) / len(frames)
        assert 0.15 <= share <= 0.25, (direction, share)
    share = sum(c.startswith("* ") for c in CLAUSES) / len(CLAUSES)
    assert 0.15 <= share <= 0.25
    assert all(sum(c.startswith("* ") for c in table) >= 1 for table in wording_frames.CLAUSES.values())


def test_the_tables_are_as_large_as_a_language_needs():
    assert all(len({f.key for f in table}) >= 40 for table in wordings.FAMILIES.values())
    assert all(len({n.text for n in table}) >= 25 for table in wording_nouns.NOUNS.values())
    assert len(set(FRAMES)) >= 60
    for direction in wordings.DIRECTIONS:
        texts = {text for change, text in drawn("train", 20_000) if change.direction == direction}
        assert len(texts) > 1000


def test_training_never_sees_what_is_held_out():
    """In 20,000 draws: no held-out lemma in its direction, noun of the finding, frame or clause."""
    verbs = {
        d: pattern({form for f in table if f.held for form in wordings.surface_forms(f)})
        for d, table in wordings.FAMILIES.items()
    }
    nouns = {
        what: pattern({form for n in table if n.held for form in (n.text, n.many) if form})
        for what, table in wording_nouns.NOUNS.items()
    }
    for change, text in drawn("train", 20_000):
        what = change.finding.partition(" ")[2] if change.finding in FINDINGS[:4] else change.finding
        assert not verbs[change.direction].search(text.lower()), text
        assert not nouns[what].search(text.lower()), text
    rng = np.random.default_rng(0)
    held = {f.removeprefix("* ").split("{")[0] for f in wording_frames.NOTHING if f.startswith("* ")}
    assert not [t for t in (restate.restate([], rng) for _ in range(500)) if any(t.startswith(h) for h in held)]


def test_the_phantom_s_own_words_are_not_held_out():
    """Templates, and with them the texts that a model writes, may be trained on: nothing in them is held out."""
    rng = np.random.default_rng(0)
    held = {form for n in NOUNS if n.held for form in (n.text, n.many) if form}
    texts = []
    for _ in range(100):
        first, second = _reports(rng)
        made = progression(first, second)
        texts += [made.prompt, made.interpretation, *first.values(), *second.values()]
    found = pattern(held).findall(" ".join(texts).lower())
    assert not found


@pytest.mark.parametrize("kind", sorted(restate.HELD))
def test_each_kind_can_be_held_out_by_itself(kind):
    verbs = {
        d: pattern({x for f in t if f.held for x in wordings.surface_forms(f)}) for d, t in wordings.FAMILIES.items()
    }
    noun = pattern({form for n in NOUNS if n.held for form in (n.text, n.many) if form})
    for change, text in drawn("held-out", 400, held=frozenset({kind})):
        if kind == "verb":
            assert verbs[change.direction].search(text.lower()), text
        if kind == "noun":
            assert noun.search(text.lower()), text
        else:
            assert kind != "verb" or not noun.search(text.lower()), text
    both = drawn("held-out", 400)
    assert all(verbs[c.direction].search(t.lower()) and noun.search(t.lower()) for c, t in both)


# ------------------------------------------------------------------------------------------------ sentences


def test_sentences_are_english():
    for part in restate.PARTS:
        for _, text in drawn(part, 3000, seed=1):
            assert re.fullmatch(r"[A-Z].*[.]", text), text
            assert not re.search(
                r"  | [.,;:]|\.\.|[{}*]|\b(a|an|the|is|in|of|to) \1\b|\ba [aeio]\w|\ban [^aeiouLA]", text
            ), text
            assert not re.search(r"\b(?:effusions|pneumothoraces|lines|lungs are|bands) (?:is|has)\b", text), text


def test_what_the_rules_read_is_what_was_said():
    """Of what they read, nearly nothing is another change; what they do not read, they say so."""
    read = wrong = exact = 0
    for change, text in drawn("train", 2500, seed=2):
        found = changes_of(text)
        if not found:
            continue
        read += 1
        wrong += {c.finding: SIGN[c.direction] for c in found} != {change.finding: SIGN[change.direction]}
        exact += found == (change,)
    assert read > 0.7 * 2500
    assert wrong < 0.01 * read
    assert exact > 0.9 * read


def test_several_changes_and_what_does_not_change():
    rng = np.random.default_rng(0)
    changes = [Change("left pleural effusion", "worse", "moderate"), Change("pulmonary edema", "resolved")]
    others = [f for f in FINDINGS if f not in {c.finding for c in changes}]
    seen = set()
    for _ in range(300):
        text = restate.restate(changes, rng, asides=1.0, others=others)
        # The right effusion stays, but "no new effusion" is said of no side: it is not said beside the left one.
        assert not re.search(r"no .*new pleural effusion|new pulmonary edema", text), text
        seen |= set(re.findall(r"new (pneumothorax|cardiomegaly|consolidation|atelectasis)|(unchanged|else)", text))
    assert len(seen) > 3
    rest = [restate.restate(changes, rng, asides=1.0, others=["cardiomegaly"]) for _ in range(200)]
    assert not [t for t in rest if re.search(r"otherwise|everything else|the rest|nothing else", t, re.I)]
    both = [Change(f"{side} pneumothorax", "resolved") for side in ("left", "right")]
    assert any("both" in t or "bilateral" in t for t in (restate.restate(both, rng).lower() for _ in range(20)))


def test_no_change_says_so():
    rng = np.random.default_rng(0)
    texts = {restate.restate([], rng) for _ in range(300)}
    assert len(texts) > 20
    read = [t for t in texts if changes_of(t) == () or rules.says_no_change(t)]
    assert len(read) > 0.5 * len(texts)
    assert not [t for t in texts if changes_of(t)]


def test_slips_keep_what_matters():
    rng = np.random.default_rng(0)
    text = (
        "New moderate left pleural effusion, increasing pulmonary edema and no pneumothorax at the costophrenic angle."
    )
    slipped = {noise.slipped(text, rng, 0.7) for _ in range(300)}
    assert len(slipped) > 100
    for word in ("new", "moderate", "left", "increasing", "no"):
        assert all(re.search(rf"\b{word}\b", t, re.I) for t in slipped), word
    assert noise.slipped(text, rng, 0.0) == text
    assert noise.british("Edema is sizable.") == "Oedema is sizeable."


def test_the_same_generator_gives_the_same_words():
    changes = [Change("cardiomegaly", "better", "mild")]
    draw = [restate.restate(changes, np.random.default_rng(5), noise=0.3) for _ in range(2)]
    assert draw[0] == draw[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"finding": "nodule", "direction": "up"},
        {"finding": "cardiomegaly", "direction": "up"},
        {"finding": "cardiomegaly", "direction": "resolved", "grade": "mild"},
        {"finding": "cardiomegaly", "direction": "new", "zone": "upper"},
        {"finding": "left pneumothorax", "direction": "new", "side": "left"},
    ],
)
def test_a_change_that_cannot_be(wrong):
    with pytest.raises(ValueError, match=r"expected|side"):
        Change(**wrong)


# ------------------------------------------------------------------------------------------------ reading back


def _reports(rng):
    who = phantom.sample_patient(rng)
    before, after = phantom.sample_trajectory(rng, who, 2)
    return report(rng, who, before, None), report(rng, who, after, before)


def test_a_template_prompt_is_read_in_full():
    rng = np.random.default_rng(3)
    for _ in range(300):
        made = progression(*_reports(rng))
        found = changes_of(made.prompt)
        assert found is not None, made.prompt
        assert bool(found) == (made.prompt != NO_CHANGE)
        assert all(made.changes[c.finding] == SIGN[c.direction] for c in found), made.prompt


def test_restated_keeps_what_it_does_not_understand():
    rng = np.random.default_rng(0)
    for prompt in (
        "New rib fracture.",
        "New effusion.",
        "",
        "New left effusion with a frobnicator.",
        "Left effusion may be larger.",
        "No pneumothorax.",
    ):
        assert restated(prompt, rng, 1.0) == prompt
    assert "frobnicator" in restated("New left effusion with a frobnicator.", rng, 1.0)
    assert restated("New cardiomegaly.", rng, 0.0) == "New cardiomegaly."
    assert restated("New cardiomegaly.", rng, 1.0, fits=lambda text: False) == "New cardiomegaly."
    told = {
        restated("New left pneumothorax.", rng, 1.0, "New left pneumothorax. New edema.", asides=1.0) for _ in range(99)
    }
    assert len(told) > 60
    assert not [
        t for t in told if re.search("edema|otherwise|else|the rest|pneumothorax\\.$", t, re.I) and "No new" in t
    ]


def test_a_complete_prompt_names_every_change_of_the_interpretation(monkeypatch):
    said = []
    monkeypatch.setattr(prompt_changes, "restate", lambda changes, *rest, **more: said.append(tuple(changes)) or "told")

    def changes(told, complete):
        said.clear()
        for seed in range(40):
            prompt, rng = "Increased pulmonary edema.", np.random.default_rng(seed)
            assert restated(prompt, rng, 1.0, told, complete=complete, drop_grade=0.0) == "told"
        return {tuple((c.finding, c.direction, c.grade) for c in one) for one in said}

    edema = ("pulmonary edema", "worse", None)
    told = "New small left pleural effusion. Increased pulmonary edema. Unchanged cardiomegaly. No pneumothorax."
    assert changes(told, 0.0) == {(edema,)}
    assert changes(told, 1.0) == {(("left pleural effusion", "new", "mild"), edema)}
    assert len(changes(told, 0.5)) == 2
    # An interpretation that is not read, or tells no change, leaves the prompt's own.
    assert changes("Possible new left pneumothorax.", 1.0) == changes(NO_CHANGE, 1.0) == {(edema,)}


def test_what_moved_in_an_interpretation():
    told = "New small left pleural effusion. Unchanged cardiomegaly. No pneumothorax. Resolved pulmonary edema."
    changes = Change("left pleural effusion", "new", "mild"), Change("pulmonary edema", "resolved")
    assert changes_of(told, moved=True) == changes
    assert changes_of(told) is None  # a finding that is absent is no change
    assert changes_of("No significant change.", moved=True) == ()
    assert changes_of("Possible new left pleural effusion.", moved=True) is None


def test_what_stands_before_and_behind_a_statement_changes_no_reading():
    """Openings and endings say nothing of the chest."""
    text, wanted = "New left pleural effusion.", (Change("left pleural effusion", "new"),)
    assert not [w for w in (*noise.OPENINGS, *noise.ENDINGS) if rules.mentions(f"{w}.")]
    framed = {noise.slipped(text, np.random.default_rng(seed), 1e-9) for seed in range(400)}
    starts = {f.split(": ")[0] for f in framed}
    assert len(framed) > 60
    assert len(starts & set(noise.OPENINGS)) > 10
    assert any(f.endswith(f"{e}.") for f in framed for e in noise.ENDINGS)
    assert np.mean([changes_of(f) == wanted for f in framed]) > 0.7
    assert not [f for f in framed if {c.finding for c in changes_of(f) or wanted} != {"left pleural effusion"}]
    assert {noise.slipped(text, np.random.default_rng(seed), 0.0) for seed in range(9)} == {text}


# ------------------------------------------------------------------------------------------------ understood

WORDINGS = [
    ("Drain the left effusion.", ("pleural effusion", "left", None, "resolved")),
    ("The fluid on the left got much larger after missed dialysis", ("pleural effusion", "left", None, "worse")),
    ("big right ptx", ("pneumothorax", "right", "severe", "present")),
    ("Pneumonia in the right lower lobe has cleared.", ("consolidation", "right", None, "resolved")),
    ("Less oedema than yesterday, now mild", ("pulmonary edema", None, "mild", "better")),
    ("The heart is smaller.", ("cardiomegaly", None, None, "better")),
    ("No pneumothorax.", ("pneumothorax", None, None, "absent")),
    ("Bibasilar atelectasis is stable", ("atelectasis", "both", None, "same")),
    ("Add a small left effusion", ("pleural effusion", "left", "mild", "new")),
    ("nothing has changed, no change", ("", None, None, "same")),
]


@pytest.mark.parametrize(("text", "wanted"), WORDINGS)
def test_what_is_understood(text, wanted):
    found = understood(text)
    assert [(r.finding, r.side, r.grade, r.direction) for r in found.read] == [wanted]
    assert found.warning is None
    assert json.loads(json.dumps(found.to_dict()))["read"][0]["direction"] == wanted[3]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Please add a rib fracture.", "fracture"),
        ("New 2 cm nodule in the left upper lobe", "nodule"),
        ("Remove the chest tube.", "tube"),
        ("large hiatal hernia", "hernia"),
        ("severe emphysema with a new left effusion", "emphysema"),
        ("Wibble the frobnicator.", "nothing"),
        ("Larger left effusion. Smaller left effusion.", "different things"),
        ("New effusion.", "side"),
    ],
)
def test_a_warning_says_what_the_model_cannot_do(text, word):
    assert word in understood(text).warning


def test_a_cause_is_not_asked_for():
    found = understood("Smaller left pneumothorax after chest tube placement.")
    assert found.unknown == ()
    assert found.warning is None
    assert understood("").warning is None
    assert understood("The frobnicator of the left effusion resolved").rest == "frobnicator"


# ------------------------------------------------------------------------------------------------ controls


def test_a_contradicting_sentence_says_the_contradicting_change():
    before, after = {f: 0.0 for f in FINDINGS}, {f: 0.0 for f in FINDINGS}
    before["cardiomegaly"], after["cardiomegaly"] = 0.4, 0.2
    change = controls.contradicting_change(before, after, "", "a")
    assert change == Change("cardiomegaly", "worse", "severe")
    assert controls.contradicting_prompt(before, after, "", "a") == "Worsening cardiomegaly."
    text, said = controls.contradicting_sentence(before, after, "", "a")
    assert said == change
    assert rules.changes(text)["cardiomegaly"] == 1
    assert (text, said) == controls.contradicting_sentence(before, after, "", "a")
    some = [controls.contradicting_sentence(before, after, "", str(i))[0] for i in range(30)]
    assert len(set(some)) > 20
    assert all(rules.changes(text, {"cardiomegaly": True}) == {"cardiomegaly": 1} for text in some)
    grades = {controls.contradicting_change({}, {}, "", f"case {i}").grade for i in range(30)}
    assert grades == {None, "mild", "moderate", "severe"}
    for key in "abcdefgh":  # what the prior has at most: severe
        worst = controls.contradicting_change({"cardiomegaly": 0.9}, {"cardiomegaly": 0.1}, "", key)
        assert worst == Change("cardiomegaly", "worse")


def test_a_contradicting_sentence_that_does_not_fit_is_the_plain_prompt_without_a_grade():
    before, after = {"cardiomegaly": 0.4}, {"cardiomegaly": 0.2}
    short, change = controls.contradicting_sentence(before, after, "", "a", fits=lambda text: len(text) < 40)
    assert len(short) < 40
    assert change.grade == "severe"
    plain = ("Worsening cardiomegaly.", Change("cardiomegaly", "worse"))
    assert controls.contradicting_sentence(before, after, "", "a", fits=lambda text: False) == plain


# ------------------------------------------------------------------------------------------------ vocabulary


@pytest.fixture(scope="module")
def words():
    return vocabulary.load("radiology")


def test_held_out_words_fall_into_few_pieces(words):
    """Mean below 2 pieces a word; none in more than six, and a letter by itself in few."""
    pieces, letters = [], 0
    for _, text in drawn("held-out", 1500, seed=3):
        for word in regex.findall(vocabulary.SPLIT, text):
            if re.search("[A-Za-z]{2}", word):
                ids = words.encode(word)
                pieces.append(len(ids))
                letters += len(ids) > 1 and any(len(words.decode([i]).strip()) == 1 for i in ids)
    assert np.mean(pieces) < 1.5
    assert np.mean(np.asarray(pieces) > 4) < 0.01
    assert max(pieces) <= 6
    assert letters < 0.04 * len(pieces)


def test_twenty_words_fit_the_recommended_budget(words):
    texts = [text for part in restate.PARTS for _, text in drawn(part, 2000, seed=4)]
    assert max(len(words.encode(text)) for text in texts if len(text.split()) <= 20) <= 40
    long = "Please show a moderate left-sided pleural effusion that was not there before and make the"
    long += " enlarged heart a bit smaller."
    assert len(long.split()) == 20
    assert len(words.encode(long)) <= 40


def test_a_vocabulary_by_name(words, tmp_path):
    assert (words.text_size, words.visual_start, words.codebook_size) == (2861, 3072, 1024)
    assert vocabulary.load("radiology", 2048).codebook_size == 2048
    assert vocabulary.load().hash.startswith("eaeb7ad8a896")  # of every export before the name was there
    words.save(tmp_path / "saved")
    assert vocabulary.load(tmp_path / "saved").hash == words.hash
    with pytest.raises(UserError):
        vocabulary.load(tmp_path / "saved", 2048)
    with pytest.raises(UserError):
        vocabulary.load("cardiology")


def test_dropout_leaves_the_text_and_is_off_by_default(words):
    text = "Regressing left hydrothorax, now moderate — über 2.5 cm."
    plain = words.encode(text)
    rng = np.random.default_rng(0)
    assert words.encode(text, rng, 0.0) == plain
    assert rng.random() == np.random.default_rng(0).random()  # nothing was drawn
    cut = {tuple(words.encode(text, np.random.default_rng(i), 0.2)) for i in range(20)}
    assert len(cut) > 10
    assert all(words.decode(ids) == text for ids in cut)
    assert words.encode(text, np.random.default_rng(0), 1e-12) == plain
    for bad in ((None, 0.1), (rng, 1.0), (rng, -0.1)):
        with pytest.raises(ValueError):
            words.encode(text, *bad)


def test_every_family_and_noun_is_used():
    keys = {(d, f.key) for d, table in wordings.FAMILIES.items() for f in table}
    assert len(keys) == len(FAMILIES)
    assert all(f.verb or f.noun or f.adjectives or f.after or f.done or f.do for f in FAMILIES)
    assert dataclasses.is_dataclass(FAMILIES[0])
