"""What a language model's server may send beside a good answer: each is bounded, one line, and never kept."""

import contextlib
import itertools
import json
import socket
import threading
import time

import pytest
from support import cohorts

from progemu_jax.data import texts
from progemu_jax.data.journeys import Options, journeys
from progemu_jax.data.sources import open_source
from progemu_jax.data.texts import TextOptions
from progemu_jax.errors import UserError

pytest.importorskip("openai")
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GOOD = {"prompt": "New effusion.", "interpretation": "A new effusion.", "confidence": 4, "reason": "Said."}


@pytest.fixture
def serve():
    """start(parts): a server that sends these bytes, one after the other, to whoever asks -> its address."""
    sockets = []

    def start(parts):
        listener = socket.create_server(("127.0.0.1", 0))
        sockets.append(listener)

        def answer(connection):
            with contextlib.suppress(OSError), connection:
                connection.recv(2**20)
                for part in parts():
                    connection.sendall(part)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(2**16):  # closing over an unread half of the request would cut the answer off
                    pass

        def accept():
            with contextlib.suppress(OSError):
                while True:
                    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"

    yield start
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    root = cohorts.write(tmp_path_factory.mktemp("cohort"), patients=1, studies=2)
    return [p for j in journeys(open_source("mimic_cxr", root).studies(), Options()).journeys for p in j.pairs][:1]


def message(content, usage=None):
    made = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "usage": usage,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}  # fmt: skip
    return json.dumps(made)


def refused(pairs, cache, url, why, timeout=20.0):
    options = TextOptions("llm", endpoint=url, model="m", retries=0, parallel=1, timeout=timeout)
    with pytest.raises(UserError) as caught:
        texts.ask(pairs, options, cache, source="x", credentialed=False, progress=False)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in cache.rglob("*.*")] == ["calls.jsonl"]


@pytest.mark.parametrize(
    "body",
    [
        message([1, 2]),
        message([{"type": "text", "text": json.dumps(GOOD)}]),
        message(7),
        message({"a": 1}),
        "[" * 200_000,
        message(json.dumps(GOOD), {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 1}).replace(
            '"prompt_tokens": 1', '"prompt_tokens": 1' + "0" * 400
        ),
        message(json.dumps(GOOD), {"prompt_tokens": float("nan"), "completion_tokens": 1, "total_tokens": 1}),
        message(json.dumps(GOOD), {"prompt_tokens": -1, "completion_tokens": 1, "total_tokens": 1}),
    ],
)
def test_an_answer_of_another_form_is_one_line(pairs, tmp_path, serve, body):
    whole = HEAD + f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    refused(pairs, tmp_path, serve(lambda: [whole]), "the answer has another form")


def slowly(parts):
    for part in parts:
        time.sleep(0.1)
        yield part


@pytest.mark.parametrize(
    "parts",
    [
        lambda: slowly(itertools.chain([HEAD], itertools.repeat(b"X-More: 1\r\n"))),
        lambda: slowly(itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" "))),
    ],
    ids=["head", "body"],
)
def test_an_answer_that_comes_by_drops_has_a_deadline(pairs, tmp_path, serve, parts):
    start = time.monotonic()
    refused(pairs, tmp_path, serve(parts), "no answer within 1 s", timeout=1.0)
    assert time.monotonic() - start < 10


def test_an_answer_without_end_is_not_read_to_its_end(pairs, tmp_path, serve):
    parts = lambda: itertools.chain([HEAD + b"\r\n"], itertools.repeat(b" " * 2**16, 2**14))  # noqa: E731
    refused(pairs, tmp_path, serve(parts), f"more than {texts.MOST_BYTES} bytes")
