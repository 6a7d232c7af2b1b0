"""Rows of words alone: they lie where a real row has them, see themselves alone, and keep what is held out apart."""

import re

import jax
import numpy as np
import pytest
from support.initial import initial

from progemu_jax.errors import UserError
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.tasks import words
from progemu_jax.tasks.embeddings import PROJECTION, known_projection
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask
from progemu_jax.tasks.progemu import packer as pairs_packer
from progemu_jax.tasks.word_vectors import WordVectors
from progemu_jax.text import restate, sequence, vocabulary, wording_frames, wording_nouns, wordings
from progemu_jax.text.findings import FINDINGS, NO_CHANGE
from progemu_jax.text.plain import plain
from progemu_jax.text.prompt_changes import changes_of
from progemu_jax.text.restate import Change
from progemu_jax.text.sequence import Kind, Layout
from progemu_jax.training.loop import TrainConfig

BUDGET = 40
LAYOUT = Layout(2, 3, 256, prompt_budget=BUDGET)
DRAWN, HELD = words.Draws(8)[0], words.Draws(8, held_out=True)[0]


@pytest.fixture(scope="module")
def vocab():
    return vocabulary.load("radiology", 16)


def packed(vocab, example=DRAWN, seed=0, **task):
    task = ProgEmuConfig(length=256, prompt_budget=BUDGET, **task)
    return words.packer(vocab, LAYOUT, task)(example, np.random.default_rng(seed))


def sentences(vocab, row):
    """(prompt, answer) of each segment."""
    out = []
    for number in range(1, row["segments"].max() + 1):
        own = row["segments"] == number
        parts = (row["tokens"][own & (row["kinds"] == kind)] for kind in (Kind.PROMPT, Kind.TEXT))
        out.append(tuple(vocab.decode(part) for part in parts))
    return out


def test_a_row_has_the_tokens_and_positions_of_a_real_pair_s(vocab):
    row, codes = packed(vocab), np.zeros((2, 3), int)
    told = sentences(vocab, row)
    assert len(told) > 2
    for number, (prompt, answer) in enumerate(told, 1):
        real = sequence.pack(vocab, LAYOUT, codes, prompt, codes, answer)
        own = row["segments"] == number
        for name in ("tokens", "positions"):
            for kinds in ([Kind.BOS], [Kind.PROMPT], [Kind.TEXT, Kind.EOS]):
                mine, theirs = (r[name][np.isin(r["kinds"], kinds)] for r in ({k: row[k][own] for k in row}, real))
                np.testing.assert_array_equal(mine, theirs)
        (boi,) = row["positions"][own & (row["kinds"] == Kind.STRUCTURE)]
        target = (real["kinds"] == Kind.STRUCTURE) & (real["tokens"] == vocab.boi)
        assert [boi] == real["positions"][target].tolist()
    rest = row["segments"] == 0
    assert (row["tokens"][rest] == vocab.pad).all()
    assert (row["kinds"][rest] == Kind.PAD).all()


def test_a_row_holds_any_prompt_that_fits(vocab):
    task = ProgEmuConfig(prompt_budget=200)
    assert words.row_length(task) == 403
    assert words.row_length(ProgEmuConfig(prompt_budget=4)) == words.LENGTH == len(packed(vocab)["tokens"])


def test_sentences_of_a_row_see_themselves_alone(vocab):
    model = TransformerConfig(
        vocab_size=vocab.size, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24, initializer_range=0.5,
    )  # fmt: skip
    config = ProgEmuConfig(length=words.LENGTH, weight_prompt=0.0, weight_structure=0.0)
    task = ProgEmuTask(model, config, TrainConfig(steps=1))
    params = initial(task.init)["params"]
    loss = jax.jit(lambda batch: task.loss(params, batch, None))
    row = packed(vocab)

    def of(row):
        mean, metrics = loss({name: value[None] for name, value in row.items()})
        return float(mean), float(metrics["weight"])

    def alone(number):
        out = {name: np.zeros_like(value) for name, value in row.items()}
        out["tokens"][:], out["aligned"][:] = vocab.pad, -1
        own = row["segments"] == number
        for name in row:
            out[name][: own.sum()] = row[name][own]
        return out

    parts = [of(alone(number)) for number in range(1, row["segments"].max() + 1)]
    whole, weight = of(row)
    assert weight == sum(w for _, w in parts) == np.isin(row["kinds"], (Kind.TEXT, Kind.EOS)).sum()
    assert whole == pytest.approx(sum(mean * w for mean, w in parts) / weight, rel=1e-5)
    mixed = {**row, "segments": np.minimum(row["segments"], 1)}
    assert abs(of(mixed)[0] - whole) > 1e-3


def test_held_out_rows_have_nothing_of_training_and_training_nothing_held_out(vocab, monkeypatch):
    change = Change("left pneumothorax", "worse")
    monkeypatch.setattr(words, "drawn_changes", lambda rng, findings: [change])
    verbs = {form for f in wordings.FAMILIES["worse"] if f.held for form in wordings.surface_forms(f)}
    nouns = {form for n in wording_nouns.NOUNS["pneumothorax"] if n.held for form in (n.text, n.many) if form}
    verbs, nouns = ("|".join(re.escape(form.lower()).replace(r"\{s\}", "left") for form in f) for f in (verbs, nouns))
    for seed in range(8):
        for prompt, _ in sentences(vocab, packed(vocab, HELD, seed, word_dropout=0.5, dictionary=1.0)):
            assert re.search(rf"\b(?:{verbs})\b", prompt.lower()), prompt
            assert re.search(rf"\b(?:{nouns})\b", prompt.lower()), prompt
        for prompt, _ in sentences(vocab, packed(vocab, DRAWN, seed)):
            assert not re.search(rf"\b(?:{verbs}|{nouns})\b", prompt.lower()), prompt
    monkeypatch.setattr(words, "drawn_changes", lambda rng, findings: [])
    frames = [f for f in wording_frames.NOTHING if f.startswith("* ")]
    starts = tuple(f.removeprefix("* ").split("{")[0] for f in frames)
    for prompt, answer in sentences(vocab, packed(vocab, HELD)):
        assert prompt.startswith(starts)
        assert answer == NO_CHANGE
    assert not [p for p, _ in sentences(vocab, packed(vocab)) if p.startswith(starts)]


def test_the_answer_says_what_was_drawn():
    """In the interpretations' words, which the rules read back, grade and place too."""
    rng, directions, findings, numbers = np.random.default_rng(0), [], [], []
    for _ in range(2000):
        changes = words.drawn_changes(rng)
        assert changes_of(plain(changes)) is not None
        assert {(c.finding, c.direction, c.grade, c.side, c.zone) for c in changes} == {
            (
                c.finding,
                c.direction,
                c.grade,
                c.side,
                c.zone if c.finding == "consolidation" else found_zone(changes, c),
            )
            for c in changes_of(plain(changes))
        }
        numbers.append(len(changes))
        directions += [c.direction for c in changes]
        findings += [c.finding for c in changes]
    for name, of in (("direction", directions), ("finding", findings)):
        counts = np.unique(of, return_counts=True)[1] / len(of)
        np.testing.assert_allclose(counts, 1 / len(counts), atol=0.03, err_msg=name)
    assert len(set(findings)) == len(FINDINGS)
    assert set(numbers) == {0, 1, 2, 3}
    assert plain([Change("left pleural effusion", "worse", "moderate"), Change("cardiomegaly", "resolved")]) == (
        "Increased left pleural effusion, now moderate. Resolved cardiomegaly."
    )
    assert plain([Change("consolidation", "new", "mild", "right", "upper")]) == (
        "New mild right upper lung consolidation."
    )


def found_zone(changes, told):
    """The zone of an atelectasis is not told in plain words."""
    return next(c.zone for c in changes if c.finding == told.finding)


def test_the_dictionary_reads_and_is_drawn_in_its_share(vocab):
    entries = words.dictionary()
    assert len(entries) == 607
    assert ("v", "abate", ("decrease", "let up", "slake")) in entries
    assert {kind for kind, _, _ in entries} == {"v", "n", "a"}
    known = {word for _, word, _ in entries}
    assert all(near and all(near) for _, _, near in entries)
    # What leads on must end at a word of the prompts in training, mostly at once.
    told = {f.key for table in wordings.FAMILIES.values() for f in table if not f.held}
    assert sum(bool(told & {word, *near}) for _, word, near in entries) > 0.7 * len(entries)
    assert known & {f.key for table in wordings.FAMILIES.values() for f in table if f.held}  # on purpose
    answers = [a for seed in range(6) for _, a in sentences(vocab, packed(vocab, seed=seed, dictionary=1.0))]
    assert len(answers) > 30
    assert all(set(a.split(", ")) <= {n for _, _, near in entries for n in near} for a in answers)
    draws = [words.looked_up(np.random.default_rng(seed)) for seed in range(300)]
    assert len({word for word, _ in draws}) > 150
    assert any(word.startswith("to ") for word, _ in draws)
    share = [sentences(vocab, packed(vocab, seed=seed, dictionary=0.5)) for seed in range(12)]
    capital = [answer[0].isupper() for row in share for _, answer in row]  # sentences have one, near words none
    assert 0.2 < np.mean(capital) < 0.7


def test_slips_and_asides_are_of_training_alone(vocab, monkeypatch):
    asked = []
    real = restate.restate
    monkeypatch.setattr(restate, "restate", lambda *a, **k: asked.append((a[2:], k)) or real(*a, **k))
    packed(vocab, HELD)
    assert {(part, frozenset(k)) for part, k in asked} == {(("held-out",), frozenset({"findings"}))}


def test_a_share_of_the_rows_of_pairs_rehearses_words(vocab):
    task = ProgEmuConfig(length=256, prompt_budget=BUDGET, rehearse=0.3)
    rng = np.random.default_rng(0)
    codebook, codes = rng.standard_normal((16, 3)), rng.integers(0, 16, (2, 2, 3))
    example = {"prior": codes[0], "followup": codes[1], "prompt": "New edema.", "interpretation": "New edema."}
    pack = words.rehearsing(pairs_packer(vocab, LAYOUT, task, codebook, train=True), vocab, LAYOUT, task)
    rows = [pack(example, rng) for _ in range(400)]
    assert all(row.keys() == rows[0].keys() for row in rows)
    assert all(len(values) == 256 for row in rows for values in row.values())
    of_words = [row for row in rows if row["segments"].max() > 1]
    assert 0.22 < len(of_words) / len(rows) < 0.38
    assert all((row["kinds"] != Kind.VISUAL).all() for row in of_words)
    for row in rows:
        assert ((row["segments"] > 0) == (row["kinds"] != Kind.PAD)).all()
    plain = pairs_packer(vocab, LAYOUT, task, codebook, train=True)
    assert words.rehearsing(plain, vocab, LAYOUT, ProgEmuConfig()) is plain


def test_the_projection_of_vectors_is_learnt_in_every_stage(vocab):
    model = TransformerConfig(
        vocab_size=vocab.size, hidden_size=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
        intermediate_size=24,
    )  # fmt: skip
    config = ProgEmuConfig(length=words.LENGTH, weight_prompt=0.0, weight_structure=0.0)
    rng = np.random.default_rng(0)
    known = np.unique(packed(vocab)["tokens"])[10:30].astype(np.int32)
    vectors = WordVectors(known, rng.standard_normal((len(known), 12)).astype(np.float32))
    train = TrainConfig(steps=4, warmup_steps=0, learning_rate=1e-2)
    task = ProgEmuTask(model, config, train, vectors=vectors)
    batch = {name: values[None] for name, values in packed(vocab).items()}
    state, tables = initial(task.init), []
    for _ in range(2):  # the second stage goes on from the first one's projection
        tables.append(np.asarray(task.params(state)["embed_tokens"]))
        np.testing.assert_allclose(
            tables[-1][known], 0.02 * vectors.vectors @ np.asarray(state["params"][PROJECTION]), atol=1e-6
        )
        new, _ = jax.jit(task.train_step)(state, batch, jax.random.key(1))
        state = task.from_params(task.params(new))
        np.testing.assert_array_equal(state["params"][PROJECTION], new["params"][PROJECTION])
    assert (tables[0] != tables[1])[known].all()
    params = task.params(state)
    np.testing.assert_allclose(known_projection(params, vectors, 0.02), params[PROJECTION], atol=1e-4)
    with pytest.raises(UserError, match="word_vectors=False"):
        known_projection(initial(ProgEmuTask(model, config, train).init)["params"], vectors, 0.02)
