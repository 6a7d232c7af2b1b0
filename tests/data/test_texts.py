"""Texts of a language model, against a server of our own: schema, cache, retries, refusals, privacy."""

import json
import logging
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support import cohorts
from support.trees import study

from progemu_jax.data import texts, tree
from progemu_jax.data.build import build_tree
from progemu_jax.data.journeys import Options, journeys
from progemu_jax.data.sources import open_source
from progemu_jax.data.texts import TextOptions, check_answer, check_endpoint
from progemu_jax.errors import UserError
from progemu_jax.files import records

pytest.importorskip("openai")
QUIET = {"size": 64, "processes": 1, "progress": False}
GOOD = {"prompt": "New small left effusion.", "interpretation": "A new effusion.", "confidence": 4, "reason": "Said."}


class Server:
    """An OpenAI-compatible endpoint in a thread; `script(n, body)` -> (status, answer) for the n-th call."""

    def __init__(self, script):
        self.script, self.calls, self.lock = script, [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.calls.append(body)
                    number = len(outer.calls) - 1
                status, answer = outer.script(number, body)
                content = answer if isinstance(answer, str) else json.dumps(answer)
                made = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": body["model"],
                    "choices": [{"index": 0, "finish_reason": "stop",
                                 "message": {"role": "assistant", "content": content}}],
                    "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
                }  # fmt: skip
                data = json.dumps(made if status == 200 else {"error": {"message": body["messages"][1]["content"]}})
                data = "[1]" if answer is None else data
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                if status == 302:
                    self.send_header("Location", "http://192.0.2.1/v1/chat/completions")
                self.send_header("Retry-After-Ms", "1")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def serve():
    servers = []

    def start(script=lambda n, body: (200, GOOD)):
        servers.append(Server(script))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return cohorts.write(tmp_path_factory.mktemp("cohort"), patients=11, studies=2)


def options(server, **changes):
    return TextOptions(**{"mode": "llm", "endpoint": server.url, "model": "m", "retries": 2, "parallel": 2} | changes)


def pairs_of(cohort):
    return [p for j in journeys(open_source("mimic_cxr", cohort).studies(), Options()).journeys for p in j.pairs]


def ask(cohort, cache, chosen, **changes):
    pairs = pairs_of(cohort)
    texts.ask(pairs, chosen, cache, source="MIMIC", credentialed=True, progress=False, **changes)
    return [texts.text_of(pair, chosen, cache) for pair in pairs]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_become_the_texts_of_the_tree_and_are_asked_for_once(cohort, tmp_path, serve):
    server = serve()
    chosen = options(server, price_in=2.0, price_out=10.0)
    build_tree("mimic_cxr", cohort, tmp_path / "tree", text_options=chosen, **QUIET)
    found = list(tree.read_pairs(tmp_path / "tree"))
    assert {p.prompt for p in found} == {GOOD["prompt"]}
    assert all(p.meta["comment"] == {"confidence": 4, "reason": "Said."} for p in found)
    distinct = {json.dumps([p.prior.report, p.followup.report]) for p in pairs_of(cohort)}
    assert len(server.calls) == len(distinct)  # equal reports, one call
    assert "prompt" in server.calls[0]["messages"][0]["content"]
    total = texts.cost(tmp_path / "texts")
    assert total["cost"] == pytest.approx(len(distinct) * (1000 * 2 + 100 * 10) / 1e6)
    calls = len(server.calls)
    build_tree("mimic_cxr", cohort, tmp_path / "again/tree", text_options=chosen, **QUIET)  # another cache
    assert len(server.calls) == 2 * calls
    (tmp_path / "third").mkdir()
    (tmp_path / "texts").rename(tmp_path / "third/texts")
    build_tree("mimic_cxr", cohort, tmp_path / "third/tree", text_options=chosen, **QUIET)
    assert len(server.calls) == 2 * calls
    assert cohorts.files(tmp_path / "third/tree") == cohorts.files(tmp_path / "again/tree")


def unlike(cohort):
    """The cohort with a report of its own for every study."""
    for number, path in enumerate(sorted(cohort.rglob("*.txt"))):
        path.write_text(f" FINDINGS:\n\n {cohorts.SECRET} number {number}.\n\n IMPRESSION:\n\n Effusion.\n")
    return cohort


@pytest.fixture
def many(tmp_path):
    return unlike(cohorts.write(tmp_path / "many", patients=8, studies=2))


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_call_that_fails_is_tried_again(many, tmp_path, serve, status):
    server = serve(lambda n, body: (status, "") if n % 2 == 0 else (200, GOOD))
    found = ask(many, tmp_path / "c", options(server, parallel=1))
    assert [t.confidence for t in found] == [4] * 8
    assert len(server.calls) == 16


def test_an_answer_that_does_not_keep_the_schema_is_asked_for_anew_then_dropped(many, tmp_path, serve):
    seen = Counter()

    def script(n, body):
        key = body["messages"][1]["content"]
        seen[key] += 1
        if "number 0" in key:
            return 200, "Certainly! " + cohorts.SECRET
        return 200, (GOOD | {"confidence": 9}) if seen[key] == 1 else GOOD

    server = serve(script)
    found = ask(many, tmp_path / "c", options(server))
    assert found[0] == "no progression text (the answer is refused: not a JSON object)"
    assert [t.prompt for t in found[1:]] == [GOOD["prompt"]] * 7
    assert len(server.calls) == texts.TRIES + 2 * 7
    assert "confidence is no integer" in server.calls[-1]["messages"][-1]["content"]
    failures = rows(tmp_path / "c/failures.jsonl")
    assert [f["reason"] for f in failures] == ["the answer is refused: not a JSON object"]
    ask(many, tmp_path / "c", options(server))
    assert len(server.calls) == texts.TRIES + 2 * 7  # failures are kept too


def test_an_endpoint_that_dies_after_a_bad_answer_leaves_no_verdict(many, tmp_path, serve):
    server = serve(lambda n, body: (200, "no") if n == 0 else (500, ""))
    with pytest.raises(UserError, match="8 of 8 pairs got no answer"):
        ask(many, tmp_path / "c", options(server, parallel=1, retries=0))
    assert len(ask(many, tmp_path / "c", options(serve()))) == 8


def test_what_was_answered_before_the_endpoint_died_is_kept(many, tmp_path, serve):
    server = serve(lambda n, body: (200, GOOD) if n < 3 else (500, ""))
    chosen = options(server, parallel=1, retries=0)
    with pytest.raises(UserError, match=r"5 of 8 pairs got no answer \(status 500\); the same command goes on"):
        ask(many, tmp_path / "c", chosen)
    other = serve()
    assert len(ask(many, tmp_path / "c", options(other))) == 8
    assert len(other.calls) == 5


def test_a_dead_endpoint_ends_the_build_soon(tmp_path, serve):
    root = unlike(cohorts.write(tmp_path / "many", patients=30, studies=2))
    server = serve(lambda n, body: (401, ""))
    with pytest.raises(UserError, match="30 of 30 pairs"):
        ask(root, tmp_path / "c", options(server, parallel=1))
    assert len(server.calls) < 30


def test_another_form_of_answer_is_a_failure_not_a_crash(many, tmp_path, serve):
    server = serve(lambda n, body: (200, None))
    with pytest.raises(UserError, match=r"8 of 8 pairs got no answer \(the answer has another form"):
        ask(many, tmp_path / "c", options(server))


def test_confidence_filters(many, tmp_path, serve):
    server = serve(lambda n, body: (200, GOOD | {"confidence": 2 + n % 3}))
    found = ask(many, tmp_path / "c", options(server, min_confidence=3))
    dropped = [t for t in found if isinstance(t, str)]
    assert set(dropped) == {"confidence of the texts under 3"}
    assert 0 < len(dropped) < 8


def test_report_text_never_reaches_a_log_or_a_message(many, tmp_path, serve, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.INFO)
    server = serve(lambda n, body: (400, "") if n else (200, cohorts.SECRET))  # 400 echoes the reports
    with pytest.raises(UserError) as error:
        texts.ask(pairs_of(many), options(server), tmp_path / "c", source="MIMIC", credentialed=True)
    output = capsys.readouterr()
    logs = "".join(p.read_text() for p in (tmp_path / "c").glob("*.jsonl"))
    assert cohorts.SECRET not in str(error.value) + output.out + output.err + caplog.text + logs
    assert "\n" not in str(error.value)


def test_redirects_are_not_followed(many, tmp_path, serve):
    server = serve(lambda n, body: (302, ""))
    with pytest.raises(UserError, match="status 302"):
        ask(many, tmp_path / "c", options(server))


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://localhost:8000/v1", True), ("http://127.0.0.3/v1", True), ("http://[::1]:1/v1", True),
        ("https://api.example.org/v1", False), ("http://localhost.example.org/v1", False),
        ("http://10.0.0.7/v1", False),
    ],
)  # fmt: skip
def test_reports_under_an_agreement_stay_on_this_machine_unless_acknowledged(url, local):
    chosen = {"mode": "llm", "endpoint": url, "model": "m"}
    assert check_endpoint(TextOptions(**chosen), False, "open") is local
    if local:
        assert check_endpoint(TextOptions(**chosen), True, "MIMIC-CXR")
    else:
        with pytest.raises(UserError, match="send reports of MIMIC-CXR to another machine"):
            check_endpoint(TextOptions(**chosen), True, "MIMIC-CXR")
        assert not check_endpoint(TextOptions(**chosen, acknowledge=True), True, "MIMIC-CXR")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://[", "a URL such as"), ("http://localhost\n.example.org/v1", "a URL such as"),
        ("http://localhost:99999/v1", "a URL such as"), ("ftp://localhost/v1", "a URL such as"),
        ("http://127.0.0.1@example.org/v1", "holds a name or password"),
        ("http://me:secret@localhost/v1", "holds a name or password"),
    ],
)  # fmt: skip
def test_addresses_that_make_no_sense_or_hold_a_password(url, words):
    with pytest.raises(UserError, match=words) as caught:
        check_endpoint(TextOptions(mode="llm", endpoint=url, model="m"), False, "open")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_build_refuses_before_anything_is_sent(cohort, tmp_path):
    chosen = TextOptions(mode="llm", endpoint="https://api.example.org/v1", model="m")
    with pytest.raises(UserError, match="another machine"):
        build_tree("mimic_cxr", cohort, tmp_path / "tree", text_options=chosen, **QUIET)


def test_the_impression_as_prompt(cohort, tmp_path):
    build_tree("mimic_cxr", cohort, tmp_path / "tree", text_options=TextOptions(mode="impression"), **QUIET)
    found = list(tree.read_pairs(tmp_path / "tree"))
    assert {p.prompt for p in found} == {"There is a small left pleural effusion."}
    assert all("effusion" in p.interpretation for p in found)


def test_another_mode_or_instruction_is_another_tree(cohort, tmp_path):
    build_tree("mimic_cxr", cohort, tmp_path / "tree", **QUIET)
    with pytest.raises(UserError, match=r"texts\.mode='rules', asked for 'impression'"):
        build_tree("mimic_cxr", cohort, tmp_path / "tree", text_options=TextOptions(mode="impression"), **QUIET)


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": "poetry"},
        {"min_confidence": 6},
        {"mode": "llm"},
        {"mode": "llm", "endpoint": "x", "model": "m", "parallel": 0},
    ],
)
def test_bad_options(changes):
    with pytest.raises(UserError, match="texts"):
        TextOptions(**changes)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(GOOD), GOOD),
        ("```json\n" + json.dumps(GOOD) + "\n```", GOOD),
        (json.dumps(GOOD | {"prompt": " New\n effusion. "}), GOOD | {"prompt": "New effusion."}),
        ("[]", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        (json.dumps(GOOD | {"prompt": ""}), "key prompt is missing or not text"),
        (json.dumps(GOOD | {"confidence": True}), "key confidence is no integer from 1 to 5"),
        (json.dumps(GOOD | {"prompt": "New edema \ud800."}), "key prompt is missing or not text"),
        (json.dumps(GOOD | {"prompt": "x" * 401}), "key prompt is longer than 400 characters"),
        (json.dumps(GOOD | {"more": 1}), "1 unknown keys"),
    ],
)
def test_the_schema(content, expected):
    assert check_answer(content) == expected


def test_a_missing_instruction_is_one_clear_line(tmp_path):
    with pytest.raises(UserError, match=r"none\.txt: the instruction does not read"):
        TextOptions(instruction=str(tmp_path / "none.txt")).read_instruction()
    assert Path(texts.INSTRUCTION).exists()


def test_the_model_is_told_which_words_of_a_change_do_not_hold(serve, tmp_path):
    """Every order of two reports is a question of its own; pairs of the other settings are asked as before."""
    server = serve()
    rows = [study(number=n, day=n, report={"findings": f"Effusion {n}.", "impression": ""}) for n in range(3)]
    pairs = journeys(rows, Options(pairs="both", validation=0)).journeys[0].pairs
    asked = TextOptions("llm", endpoint=server.url, model="m", parallel=1)
    texts.ask(pairs, asked, tmp_path, source="x", credentialed=False, progress=False)
    bodies = [json.loads(call["messages"][1]["content"]) for call in server.calls]
    assert ["note" in body for body in bodies] == [p.said != "forward" for p in pairs]
    assert len({texts._key(p, asked) for p in pairs}) == len(pairs) == 6
    identity = "m", asked.read_instruction(), pairs[0].prior.report, pairs[0].followup.report
    assert texts._key(pairs[0], asked) == records.digest(identity)
