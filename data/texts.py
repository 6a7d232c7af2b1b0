"""Where the texts of a pair come from: offline rules, the impression as prompt, or a language model.

The language model is any OpenAI-compatible endpoint, asked through the `openai` package (extra [llm]) before pairs are
registered. Answers are kept by content, so that a second run asks only for what is missing:

    <cache>/ab/<sha256 of model, instruction and both reports>.json    {"answer": {...}} or {"failure": reason}
    <cache>/calls.jsonl         a row a call: key, seconds, tokens, cost or failure; no text of a report
    <cache>/failures.jsonl      pairs without a text, and why

Report texts leave the process only for the endpoint, and for another machine only where that was acknowledged.
"""

import contextlib
import functools
import ipaddress
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from progemu_jax.data.journeys import Pair
from progemu_jax.data.label_progression import label_progression
from progemu_jax.data.progression import progression
from progemu_jax.data.sources import is_text
from progemu_jax.errors import UserError
from progemu_jax.files import records
from progemu_jax.text.findings import NO_CHANGE, PHANTOM, Finding

MODES = ("rules", "impression", "llm")
INSTRUCTION = Path(__file__).with_name("prompts") / "progression.txt"
LIMITS = {"prompt": 400, "interpretation": 1500, "reason": 600}  # characters
TRIES = 3  # of an answer that does not keep the schema
GIVE_UP = 12  # calls in a row that do not get through
MOST_BYTES = 2**20  # of an answer; the texts take a few thousand
MOST_TOKENS = 2**31  # that an answer may say it cost


@dataclass(frozen=True)
class TextOptions:
    """mode: rules, impression (the follow-up's impression is the prompt) or llm; pairs that come with texts keep them.

    min_confidence: pairs below it are dropped (1..5). The rest is of llm: endpoint, the base URL of an
    OpenAI-compatible API; model, its name there; instruction, a file instead of data/prompts/progression.txt;
    key_variable, the environment variable that holds the key; parallel calls; timeout in seconds from a call to the end
    of its answer, and retries (with growing pauses); price_in, price_out per million tokens, for the log; acknowledge,
    without which no report of a source under a data use agreement is sent to another machine.
    """

    mode: str = "rules"
    min_confidence: int = 1
    endpoint: str = ""
    model: str = ""
    instruction: str = ""
    key_variable: str = "OPENAI_API_KEY"
    parallel: int = 8
    timeout: float = 120.0
    retries: int = 5
    price_in: float = 0.0
    price_out: float = 0.0
    acknowledge: bool = False

    def __post_init__(self):
        if self.mode not in MODES:
            raise UserError(f"texts.mode={self.mode!r}: choose among {', '.join(MODES)}")
        if not 1 <= self.min_confidence <= 5:
            raise UserError(f"texts.min_confidence={self.min_confidence}: 1 (keep all) to 5 is needed")
        if self.mode == "llm" and not (self.endpoint and self.model):
            raise UserError(
                "texts.mode=llm: give texts.endpoint (a base URL such as http://localhost:8000/v1) and .model"
            )
        if self.mode == "llm" and (self.parallel < 1 or self.timeout <= 0 or self.retries < 0):
            raise UserError("texts: parallel >= 1, timeout > 0 and retries >= 0 are needed")

    def identity(self) -> dict:
        """What the texts depend on: not how the endpoint is reached."""
        out = {"mode": self.mode, "min_confidence": self.min_confidence}
        return out | {"model": self.model, "instruction": self.read_instruction()} if self.mode == "llm" else out

    def read_instruction(self) -> str:
        path = Path(self.instruction or INSTRUCTION)
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: the instruction does not read ({type(error).__name__}); restore it") from None


@dataclass(frozen=True)
class Text:
    """prompt, interpretation, confidence 1..5 (0: unknown), reason: who says so. changed: whether anything did.
    asked: finding -> +1, -1 or 0, as the prompt says, where labels say it; None where it is read in the prompt."""

    prompt: str
    interpretation: str
    confidence: int
    reason: str
    changed: bool = True
    asked: dict[str, int] | None = None


def text_of(pair: Pair, options: TextOptions, cache: Path, findings: tuple[Finding, ...] = PHANTOM) -> Text | str:
    """The texts of a pair, or why there are none (without a word of a report). findings: the cohort's list."""
    if pair.prior.states is not None and pair.followup.states is not None:
        found = label_progression(pair.prior.states, pair.followup.states, findings, pair.pair_id)
        text = Text(found.prompt, found.interpretation, found.confidence, "labels", found.prompt != NO_CHANGE,
                    found.asked)  # fmt: skip
    elif pair.given:
        given = pair.given
        text = Text(given.prompt, given.interpretation, given.confidence, given.reason)
    elif options.mode == "llm":
        found = _cached(cache, _key(pair, options))
        if found is None or "answer" not in found:
            return f"no progression text ({found['failure'] if found else 'not asked for'})"
        answer = found["answer"]
        text = Text(**{k: answer[k] for k in ("prompt", "interpretation", "confidence")}, reason=answer["reason"],
                    changed=answer["prompt"].strip() != NO_CHANGE)  # fmt: skip
    else:
        try:
            found = progression(pair.prior.report, pair.followup.report, pair.said)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            return f"no progression text ({type(error).__name__})"
        prompt, changed = found.prompt, found.prompt != NO_CHANGE
        if options.mode == "impression":
            prompt = pair.followup.report["impression"]
            if not prompt:
                return "the follow-up has no impression"
        text = Text(prompt, found.interpretation, found.confidence, "rules", changed)
    if 0 < text.confidence < options.min_confidence:
        return f"confidence of the texts under {options.min_confidence}"
    return text


def check_endpoint(options: TextOptions, credentialed: bool, source: str) -> bool:
    """Whether the endpoint is this machine. UserError where reports under an agreement would leave it unasked."""
    try:
        parts = urlsplit(options.endpoint)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        fine = False
    if not fine or not options.endpoint.isprintable() or " " in options.endpoint:
        raise UserError(f"texts.endpoint={options.endpoint!r}: a URL such as http://localhost:8000/v1 is needed")
    if parts.username or parts.password:
        raise UserError(
            "texts.endpoint: holds a name or password, which would be stored; set the key's variable instead"
        )
    try:
        local = ipaddress.ip_address(parts.hostname).is_loopback
    except ValueError:
        local = parts.hostname == "localhost"
    if not local and credentialed and not options.acknowledge:
        raise UserError(
            f"texts.endpoint={options.endpoint!r}: this would send reports of {source} to another machine. Use an "
            "endpoint on this one, or, where your data use agreement allows it, set texts.acknowledge=True"
        )
    return local


def ask(pairs: Sequence[Pair], options: TextOptions, cache: Path, *, source: str, credentialed: bool,
        progress: bool = True) -> None:  # fmt: skip
    """Fills the cache for all pairs. Raises UserError where the endpoint fails, or may not be asked.

    An answer that does not keep the schema is asked for anew, TRIES times, and then recorded as a failure: the pair
    is dropped. Calls that do not get through (after the client's own retries) stop the build instead; the same
    command goes on.
    """
    local = check_endpoint(options, credentialed, source)
    instruction = options.read_instruction()
    todo = {}
    for pair in pairs:
        key = _key(pair, options)
        if not pair.given and _cached(cache, key) is None:
            todo.setdefault(key, pair)
    if todo:
        client = _client(options, local)
        log, lock, in_a_row, last = cache / "calls.jsonl", threading.Lock(), 0, ""
        cache.mkdir(parents=True, exist_ok=True)
        with (
            ThreadPoolExecutor(options.parallel) as pool,
            tqdm(total=len(todo), desc="texts", unit="pair", disable=not progress) as bar,
        ):
            items, running = iter(todo.items()), set()
            while True:
                while len(running) < 2 * options.parallel and in_a_row < GIVE_UP and (item := next(items, None)):
                    running.add(pool.submit(_one, client, options, instruction, *item, cache, log, lock))
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ended:
                    why = future.result()
                    in_a_row, last = (in_a_row + 1, why) if why else (0, last)
                    bar.update()
        left = sum(_cached(cache, key) is None for key in todo)
        if left:
            raise UserError(
                f"{options.endpoint}: {left} of {len(todo)} pairs got no answer ({last}); the same command goes on"
            )
    rows = [(pair.pair_id, _cached(cache, _key(pair, options))) for pair in pairs if not pair.given]
    failed = [{"pair_id": name, "reason": found["failure"]} for name, found in rows if "failure" in found]
    records.write_lines(cache / "failures.jsonl", failed)


def cost(cache: Path) -> dict:
    """{"calls", "failed", "tokens_in", "tokens_out", "cost"} summed over calls.jsonl."""
    total = {"calls": 0, "failed": 0, "tokens_in": 0, "tokens_out": 0, "cost": 0.0}
    for _, row in records.read_lines(cache / "calls.jsonl"):
        if isinstance(row, dict):  # a kill may have cut a line
            total["calls"] += 1
            total["failed"] += "failure" in row
            for key in ("tokens_in", "tokens_out", "cost"):
                total[key] += row.get(key, 0)
    return total


def check_answer(content: str) -> dict | str:
    """The answer as an object that keeps the schema, or what is wrong with it (without its words)."""
    body = content.strip()
    if body.startswith("```"):
        body = body.strip("`").removeprefix("json")
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return "not a JSON object"
    if not isinstance(answer, dict):
        return "not a JSON object"
    for key, limit in LIMITS.items():
        if not is_text(answer.get(key)) or (key != "reason" and not answer[key].strip()):
            return f"key {key} is missing or not text"
        if len(answer[key]) > limit:
            return f"key {key} is longer than {limit} characters"
    confidence = answer.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, int) or not 1 <= confidence <= 5:
        return "key confidence is no integer from 1 to 5"
    if extra := answer.keys() - {*LIMITS, "confidence"}:
        return f"{len(extra)} unknown keys"
    return {key: " ".join(v.split()) if isinstance(v, str) else v for key, v in answer.items()}


def _one(client, options, instruction, key, pair, cache, log, lock) -> str:
    """Asks for one pair and keeps the answer or its failure; returns why it did not get through, or ''."""
    reports = {"prior report": pair.prior.report, "follow-up report": pair.followup.report, **_note(pair)}
    messages = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": json.dumps(reports, ensure_ascii=False)},
    ]
    refused = ""
    for _ in range(TRIES):
        row, content = _call(client, options, messages)
        answer = check_answer(content) if "failure" not in row else None
        if isinstance(answer, str):
            row["failure"] = refused = answer
        with lock, open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key} | row) + "\n")
        if answer is None:
            return row["failure"]  # it did not get through
        if isinstance(answer, dict):
            records.write_json(_path(cache, key), {"answer": answer})
            return ""
        again = f"Your last answer was refused: {refused}. Answer again."
        messages = [*messages[:2], {"role": "user", "content": again}]
    records.write_json(_path(cache, key), {"failure": f"the answer is refused: {refused}"})
    return ""


def _call(client, options, messages) -> tuple[dict, str]:
    """One call: ({"seconds", "tokens_in", "tokens_out", "cost"; "failure" where it did not get through}, content)."""
    import openai

    start, row, content = time.monotonic(), {}, ""
    try:
        made = client.chat.completions.create(model=options.model, messages=messages, temperature=0)
        content = made.choices[0].message.content or ""
        if not isinstance(content, str):
            raise TypeError
        if used := made.usage:
            if not all(type(n) is int and 0 <= n < MOST_TOKENS for n in (used.prompt_tokens, used.completion_tokens)):
                raise ValueError
            row = {"tokens_in": used.prompt_tokens, "tokens_out": used.completion_tokens}
            row["cost"] = (used.prompt_tokens * options.price_in + used.completion_tokens * options.price_out) / 1e6
    except openai.APIStatusError as error:  # its text may quote the reports
        row["failure"] = f"status {error.status_code}"
    except (openai.APIError, _OutOfBounds) as error:  # which some versions wrap
        bounds = [e for e in (error, error.__cause__) if isinstance(e, _OutOfBounds)]
        row["failure"] = str(bounds[0]) if bounds else type(error).__name__
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        row["failure"] = f"the answer has another form ({type(error).__name__})"
    return row | {"seconds": round(time.monotonic() - start, 3)}, content


class _OutOfBounds(Exception):
    """An answer that takes too long or is too large."""


def _bounded(send: Callable, request, seconds: float):
    """The response of httpx's `send` once it is whole, as one that holds its body.

    The client's own timeout is of each read, and there is none for size: a server that sends a byte now and then, in
    head or body, would hold a thread for ever, and an endless one the memory. So a timer ends the connection, which is
    of this call alone, and the body comes as it is sent: what a few bytes unpack to has no bound.
    """
    sockets, start = [], time.monotonic()

    def connected(event: str, info: dict) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            sockets.append(info["return_value"].get_extra_info("socket"))

    def hang_up() -> None:
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    request.headers.update({"Connection": "close", "Accept-Encoding": "identity"})
    request.extensions = {**request.extensions, "trace": connected}
    timer, body = threading.Timer(seconds, hang_up), bytearray()
    timer.daemon = True
    timer.start()
    try:
        with contextlib.closing(send(request, stream=True)) as response:
            for chunk in response.iter_raw():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise _OutOfBounds(f"an answer of more than {MOST_BYTES} bytes")
                if time.monotonic() - start > seconds:
                    break
    except Exception:
        if time.monotonic() - start <= seconds:
            raise
    finally:
        timer.cancel()
    if time.monotonic() - start > seconds:
        raise _OutOfBounds(f"no answer within {seconds:g} s")
    headers = {name: value for name, value in response.headers.items() if name.lower() not in _OF_THE_TRANSFER}
    return type(response)(response.status_code, headers=headers, content=bytes(body), request=request)


_OF_THE_TRANSFER = ("content-encoding", "content-length", "transfer-encoding", "connection")


def _client(options: TextOptions, local: bool):
    try:
        import openai
    except ImportError:
        raise UserError('texts.mode=llm needs the openai package: pip install -e ".[llm]"') from None

    class Http(openai.DefaultHttpxClient):
        def send(self, request, *, stream=False, **more):
            return _bounded(functools.partial(super().send, **more), request, options.timeout)

    # No redirect, and for this machine no proxy: the reports go where the config says, or nowhere.
    http = Http(follow_redirects=False, trust_env=not local)
    return openai.OpenAI(
        base_url=options.endpoint, api_key=os.environ.get(options.key_variable) or "none", timeout=options.timeout,
        max_retries=options.retries, http_client=http,
    )  # fmt: skip


def _key(pair: Pair, options: TextOptions) -> str:
    identity = options.model, _instruction(options.instruction), pair.prior.report, pair.followup.report
    return records.digest((*identity, *_note(pair).values()))


_NOTES = {
    "reversed": "The prior report is of the later study and was written with the follow-up study at hand. What it says "
    "of a change holds the other way round: what it calls new is gone in the follow-up.",
    None: "Other studies were made between these two. What either report says of a change speaks of those: compare "
    "only what each report says is there, where and how large.",
}


def _note(pair: Pair) -> dict[str, str]:
    """What a language model must know of a pair whose follow-up report does not speak of its prior."""
    return {} if pair.said == "forward" else {"note": _NOTES[pair.said]}


@functools.cache
def _instruction(path: str) -> str:
    return TextOptions(instruction=path).read_instruction()


def _path(cache: Path, key: str) -> Path:
    return cache / key[:2] / f"{key}.json"


def _cached(cache: Path, key: str) -> dict | None:
    found = records.read_json(_path(cache, key))
    return found if isinstance(found, dict) and ("answer" in found or "failure" in found) else None
