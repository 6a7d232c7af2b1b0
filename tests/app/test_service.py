"""What the page asks of a model: patients, prompts, answers, the marks of a text; without Gradio."""

import io
import json
import queue
import socket
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from support import packed_run, tiny_diffusion
from support.cohorts import chest
from support.tiny_run import GRID, PROMPT, SIZE

from progemu_jax import provenance
from progemu_jax.app import fragments
from progemu_jax.app.__main__ import main
from progemu_jax.app.service import Ask, Service, Stopped, _Meter, supported
from progemu_jax.errors import UserError
from progemu_jax.sampling.watch import Progress
from progemu_jax.text.findings import FINDINGS


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    return Service.load(str(packed_run.write(tmp_path_factory.mktemp("app") / "run")), patients=1)


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    return Service.load(str(tiny_diffusion.write(tmp_path_factory.mktemp("app") / "diffusion")), patients=0)


@pytest.fixture(scope="module")
def answer(service):
    return service.answer(Ask(service.patients[0][1], (PROMPT,), futures=2, seed=3))


def test_an_answer_is_the_models_own_for_the_same_seed(service, answer):
    out = service.model.counterfactual(service.patients[0][1], PROMPT, num_samples=2, seed=3)
    [step] = answer.steps
    assert np.array_equal(step.out.images, out.images)
    assert step.out.texts == out.texts
    for png, image in zip(step.pngs, out.images, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image)
    assert [" ".join(sentence for sentence, _ in marks) for marks in step.marks] == [
        " ".join(text.split()) if any(c.isalpha() for c in text) else "" for text in out.texts
    ]


def test_what_is_downloaded_says_where_it_came_from(service, answer, tmp_path):
    (tmp_path / "one.png").write_bytes(answer.steps[0].pngs[1])
    facts = provenance.read_png(tmp_path / "one.png")
    assert facts["Comment"] == provenance.SYNTHETIC
    assert (facts["progemu:prompt"], facts["progemu:seed"], facts["progemu:sample"]) == (PROMPT, "3", "1")
    with zipfile.ZipFile(io.BytesIO(answer.folder)) as packed:
        rows = [json.loads(line) for line in packed.read("predictions/predictions.jsonl").splitlines()]
        assert [packed.read(f"predictions/{row['image']}") for row in rows] == answer.steps[0].pngs


def test_the_scorer_says_of_prior_and_future_what_it_says_alone(service, answer):
    [step] = answer.steps
    assert list(step.scores) == ["left pleural effusion"]
    column = FINDINGS.index("left pleural effusion")
    for s, image in enumerate(step.out.images):
        pair = np.stack([step.before(s), image])
        alone = service.scorer(pair, "phantom")["finding_prob"][:, column]
        assert step.scores["left pleural effusion"][s] == pytest.approx(alone, abs=1e-5)


def test_only_marked_places_change(service):
    mask = np.zeros(GRID, bool)
    mask[1, 2] = True
    [step] = service.answer(Ask(service.patients[0][1], (PROMPT,), mask=mask)).steps
    assert np.array_equal(step.out.codes[0][~mask], step.out.prior_codes[~mask])


def test_a_course_has_a_step_a_prompt_and_a_folder_a_step(service):
    made = service.answer(Ask(service.patients[0][1], (PROMPT, "Resolved left pleural effusion."), seed=1))
    assert [step.out.prompt for step in made.steps] == [PROMPT, "Resolved left pleural effusion."]
    assert made.steps[1].before(0).shape == (SIZE, SIZE)
    with zipfile.ZipFile(io.BytesIO(made.folder)) as packed:
        names = packed.namelist()
    assert {f"predictions/step-{n}/predictions.jsonl" for n in (1, 2)} <= set(names)


def test_severity_sets_the_grade_that_is_sent_and_shown(service):
    sent, read = service.read(PROMPT, "severe")
    assert sent == "New large left pleural effusion."
    assert [one.grade for one in read.read] == ["severe"]
    [step] = service.answer(Ask(service.patients[0][1], (PROMPT,), grade="severe")).steps
    assert step.out.prompt == sent
    with pytest.raises(UserError, match="severity"):
        service.read("Resolved edema.", "mild")


def test_a_mistake_is_a_user_error_and_the_next_request_is_served(service):
    with pytest.raises(UserError, match="empty"):
        service.answer(Ask(service.patients[0][1], (" ",)))
    assert service.answer(Ask(service.patients[0][1], (PROMPT,))).steps


def test_progress_is_told_in_words_while_it_decodes(service, monkeypatch):
    monkeypatch.setattr("progemu_jax.app.service._TELL_EVERY", 1e-4)
    monkeypatch.setattr("progemu_jax.sampling.watch.BLOCK", 0)
    told = []
    service.answer(Ask(service.patients[0][1], (PROMPT, "New edema.")), lambda *news: told.append(news))
    assert told[0][0] is None
    assert "Getting ready" in told[0][1]
    assert told[-1][1].startswith("Step 2 of 2: ")
    assert all(0 <= share < 1 for share, _ in told if share is not None)


def test_time_left_is_of_what_this_request_has_done(monkeypatch):
    seconds = iter((0.0, 2.0, 9.0, 11.0))
    monkeypatch.setattr("progemu_jax.app.service.time", types.SimpleNamespace(monotonic=lambda: next(seconds)))
    meter = _Meter(threading.Event())
    assert meter.read() is None
    for progress, told in (
        (Progress("codes", 10, 50), (0.2, "Drawing the image")),
        (Progress("codes", 20, 50), (0.4, "Drawing the image, about 6 s left")),
        (Progress("tokens", 2, 10, 2, 3), (0.2, "Step 2 of 3: writing the text")),
        (Progress("tokens", 4, 10, 2, 3), (0.4, "Step 2 of 3: writing the text, at most 6 s left")),
    ):
        meter(progress)
        assert meter.read() == told


@pytest.mark.parametrize("name", ["service", "diffusion"])
def test_a_stopped_request_ends_and_the_next_is_served(name, request):
    service = request.getfixturevalue(name)
    ask, stop = Ask(chest(0, 32), (PROMPT,)), threading.Event()
    assert service.answer(ask, stop=stop).steps
    stop.set()
    with pytest.raises(Stopped):
        service.answer(ask, stop=stop)
    assert service.answer(ask).steps


def test_one_waits_while_another_is_served_and_stops_alone(service, monkeypatch):
    ask, real = Ask(chest(0, 32), (PROMPT,)), service.model.counterfactual
    begun, go_on, told = threading.Event(), threading.Event(), queue.SimpleQueue()

    def slow(*args, watch, **options):
        begun.set()
        while not go_on.wait(0.01):
            watch(Progress("codes", 1, 2))
        return real(*args, watch=watch, **options)

    monkeypatch.setattr(service.model, "counterfactual", slow)
    with ThreadPoolExecutor(2) as users:
        stops = threading.Event(), threading.Event()
        works = users.submit(service.answer, ask, stop=stops[0])
        assert begun.wait(60)
        waits = users.submit(service.answer, ask, lambda *news: told.put(news), stops[1])
        assert told.get(timeout=60) == (None, "Waiting: 1 request before yours")
        stops[1].set()
        with pytest.raises(Stopped):
            waits.result(timeout=60)
        monkeypatch.setattr("progemu_jax.app.service.MOST_WAITING", 0)
        with pytest.raises(UserError, match="busy"):
            service.answer(ask)
        go_on.set()
        assert works.result(timeout=60).steps


def test_a_diffusion_model_answers_without_what_it_does_not_have(diffusion):
    assert diffusion.progemu is None
    assert diffusion.grid is None
    prior = chest(0, tiny_diffusion.SIZE)
    made = diffusion.answer(Ask(prior, (PROMPT,), futures=2))
    [step] = made.steps
    assert step.marks == [[], []]
    assert "writes no text" in fragments.words(step, 0, diffusion)
    assert "<img" in fragments.comparison(step, 1)
    with pytest.raises(UserError, match="one step"):
        diffusion.answer(Ask(prior, (PROMPT, PROMPT)))


def test_a_sentence_is_marked_by_what_the_scorer_sees():
    probabilities = np.zeros(len(FINDINGS), np.float32)
    probabilities[FINDINGS.index("left pleural effusion")] = 0.9
    sentences = [
        "There is a small left pleural effusion.",
        "There is a left pneumothorax.",
        "No pneumothorax.",
        "The patient is rotated.",
    ]
    assert [verdict for _, verdict in supported(sentences, probabilities)] == [True, False, True, None]
    assert supported([], probabilities) == []


def test_what_a_stranger_wrote_is_text_on_the_page(service):
    typed = "New <img src=x onerror=alert(1)> left pleural effusion."
    shown = fragments.reading(typed, typed, service.read(typed)[1], service)
    assert "<img" not in shown
    assert "left pleural effusion: new" in shown
    assert "<b>" not in fragments.said("<b>")


def test_a_prompt_that_no_model_knows_is_warned_of_while_one_types(service):
    for typed, words in (("New rib fracture.", "fracture"), ("Hello there.", "understood nothing")):
        assert words in fragments.reading(typed, typed, service.read(typed)[1], service)
    assert "for example" in fragments.reading("", "", None, service)


@pytest.mark.parametrize("flag", ["--port=0", "--patients=-1", "--model=nowhere-at-all"])
def test_bad_flags_are_one_line(flag, capsys, monkeypatch):
    monkeypatch.setattr("progemu_jax.app.page.gradio", lambda: None)
    assert main([flag]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_port_that_is_taken_is_one_line_before_a_model_is_loaded(capsys, monkeypatch):
    monkeypatch.setattr("progemu_jax.app.page.gradio", lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([f"--port={taken.getsockname()[1]}", "--model=nowhere-at-all"]) == 2
    assert "choose another port" in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert main([]) == 2
    assert "make app" in capsys.readouterr().err
