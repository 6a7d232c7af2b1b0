"""The page: Gradio's components, and what they call. Gradio (extra [app]) is imported when a page is built.

Annotations are no texts here: Gradio looks for its own type among those of a function inside `build`.
"""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from progemu_jax.app import fragments, uploads
from progemu_jax.app.service import GRADE_NAMES, MOST_FUTURES, MOST_STEPS, Answer, Ask, Service, Stopped, Tell
from progemu_jax.data import images
from progemu_jax.errors import UserError
from progemu_jax.eval.report import STANDING
from progemu_jax.inference import request

TITLE = "ProgEmu: counterfactual chest X-rays"
_STATIC = Path(__file__).parent / "static"
_HOUR = 3600
_TAKEN = "--host={} --port={}: {}; choose another port"
# Anything that a browser would fetch from elsewhere is refused by it.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'self'; base-uri 'self'"
)
_PATIENTS = """<div class="pe-patients">{{#each value}}<button type="button" data-index="{{@index}}"
 aria-label="{{this.name}}"><img alt="" src="{{this.image}}">{{this.name}}</button>{{/each}}</div>"""
_PICK = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", {index: Number(button.dataset.index)});
});"""
_BRUSH = """{{#if value.image}}<div class="pe-brush"><img alt="The prior" src="{{value.image}}">
<div class="pe-grid" style="grid-template-columns: repeat({{value.columns}}, 1fr)">{{#each value.marks}}<span
 class="pe-cell {{this}}"></span>{{/each}}</div></div>{{/if}}"""


def gradio() -> Any:
    """The library, or one clear line. What it would tell others of this machine is off."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    try:
        import gradio
    except ImportError:
        raise UserError('the app needs Gradio: make app, or pip install -e ".[app]"') from None
    return gradio


def build(service: Service) -> Any:
    """gradio.Blocks of the page of a model."""
    gr = gradio()
    progemu = service.progemu is not None
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, 600)) as page:
        prior, answer = gr.State(None, time_to_live=_HOUR), gr.State(None, time_to_live=_HOUR)
        gr.HTML(f'<p class="pe-standing" role="note">{STANDING}</p>', elem_id="standing")
        gr.Markdown(f"# Counterfactual chest X-rays\nModel: `{service.model.name}`")
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("## 1. A film")
                patients = gr.HTML(
                    [
                        {"image": fragments.data_uri(images.png(image)), "name": f"Patient {n}"}
                        for n, (_, image) in enumerate(service.patients, 1)
                    ],
                    html_template=_PATIENTS,
                    js_on_load=_PICK,
                    visible=bool(service.patients),
                    elem_id="patients",
                )
                upload = gr.UploadButton("Use a film of your own (PNG, JPEG, DICOM)", elem_id="upload")
                about = gr.HTML(elem_id="about")
                brush = gr.HTML(
                    {},
                    html_template=_BRUSH,
                    js_on_load=(_STATIC / "brush.js").read_text(encoding="utf-8"),
                    elem_id="brush",
                )
                with gr.Row(visible=progemu):
                    find = gr.Button("Mark where the prompt acts", elem_id="find")
                    clear = gr.Button("Unmark all", elem_id="clear")
            with gr.Column(min_width=300):
                gr.Markdown("## 2. What changes")
                prompt = gr.Textbox(
                    label="Prompt", lines=2, max_length=request.LONGEST_PROMPT, elem_id="prompt",
                    placeholder="New small left pleural effusion.",
                )  # fmt: skip
                reading = gr.HTML(elem_id="reading")
                severity = gr.Slider(
                    0, len(GRADE_NAMES) - 1, 0, step=1, elem_id="severity",
                    label=f"Severity ({', '.join(f'{n} {name}' for n, name in enumerate(GRADE_NAMES))})",
                )  # fmt: skip
                futures = gr.Slider(1, MOST_FUTURES, 1, step=1, label="Futures", elem_id="futures")
                seed = gr.Number(0, label="Seed", precision=0, elem_id="seed")
                later = gr.Textbox(
                    label=f"A course: further steps, one prompt a line, at most {MOST_STEPS - 1}",
                    lines=2, visible=progemu, elem_id="later",
                )  # fmt: skip
                status = gr.HTML(elem_id="status", min_height=60)  # above: in sight of who clicks
                with gr.Row():
                    edit = gr.Button("Edit", variant="primary", elem_id="edit")
                    halt = gr.Button("Stop", variant="stop", elem_id="stop")
        with gr.Column(visible=False, elem_id="result") as result:
            gr.Markdown("## 3. The answer")
            strip = gr.HTML(elem_id="strip")
            step = gr.Radio([1], value=1, label="Step", visible=False, elem_id="step")
            future = gr.Radio([1], value=1, label="Future", visible=False, elem_id="future")
            compare, words = gr.HTML(elem_id="compare"), gr.HTML(elem_id="words")
            downloads = gr.HTML(elem_id="downloads")

        def chosen(image: np.ndarray) -> dict[str, Any]:
            return {prior: image, brush: _brushed(service, image)}

        def pick(event: gr.EventData) -> dict[str, Any]:
            number = int(event.index)
            if not 0 <= number < len(service.patients):
                return {about: fragments.said("There is no such patient.", "error")}
            case, image = service.patients[number]
            told = f"Patient {number + 1}, drawn by a program; no training has seen it."
            return {**chosen(image), about: fragments.said(told), prompt: case.prompt}

        def take(path: str) -> dict[str, Any]:
            try:
                image, note = service.upload(path)
            except UserError as error:
                return {upload: None, about: fragments.said(_sentence(error), "error")}
            finally:
                uploads.delete(path)
            return {**chosen(image), upload: None, about: fragments.said(f"Your film. {note}")}

        def typed(text: str, grade: int) -> str:
            try:
                return fragments.reading(*_read(service, text, grade), service)
            except UserError as error:
                return fragments.said(_sentence(error), "warn")

        bar = gr.Progress()  # as a default it tells Gradio that this function reports
        running: set[tuple[str | None, threading.Event]] = set()  # page and stop of each request that works or waits

        def end(who: gr.Request) -> bool:
            """Stops a page's requests; whether there were any."""
            mine = [stop for page, stop in list(running) if page == who.session_hash]
            for stop in mine:
                stop.set()
            return bool(mine)

        @contextlib.contextmanager
        def stoppable(who: gr.Request) -> Iterator[threading.Event]:
            entry = who.session_hash, threading.Event()
            running.add(entry)
            try:
                yield entry[1]
            finally:
                running.discard(entry)

        def line(error: UserError | Stopped) -> str:
            if isinstance(error, Stopped):
                return fragments.said("Stopped. What was shown before stays.")
            return fragments.said(_sentence(error), "error")

        def mark(image: np.ndarray | None, text: str, who: gr.Request, progress=bar) -> dict[str, Any]:
            try:
                with stoppable(who) as stop:
                    found = service.change_mask(_given(image), text, _teller(progress), stop)
            except (UserError, Stopped) as error:
                return {status: line(error)}
            told = f"{found.sum()} places are marked: only they may change." if found.any() else "It acts nowhere."
            return {brush: _brushed(service, image, found), status: fragments.said(told)}

        def run(image, text, steps, grade, count, number, brushed, who: gr.Request, progress=bar) -> dict[str, Any]:
            try:
                ask = _ask(service, image, (text, *(steps or "").splitlines()), grade, count, number, brushed)
                with stoppable(who) as stop:
                    made = service.answer(ask, _teller(progress), stop)
            except (UserError, Stopped) as error:
                return {status: line(error)}
            told = f"Done in {made.seconds:.1f} s. Synthetic: for research only."
            several = [list(range(1, 1 + n)) for n in (len(made.steps), len(made.steps[0].pngs))]
            return {
                answer: made,
                status: fragments.said(told),
                result: gr.Column(visible=True),
                step: gr.Radio(several[0], value=len(made.steps), visible=len(made.steps) > 1),
                future: gr.Radio(several[1], value=1, visible=len(several[1]) > 1),
                **shown(made, len(made.steps), 1),
            }

        def halted(who: gr.Request) -> Any:
            return gr.skip() if end(who) else fragments.said("Nothing of yours is at work.")

        def shown(made: Answer | None, at: int, which: int) -> dict[str, Any]:
            if made is None or not at or not which:
                return {}
            one, which = made.steps[at - 1], which - 1
            return {
                strip: fragments.course(made, which) + fragments.futures(one),
                compare: fragments.comparison(one, which),
                words: fragments.words(one, which, service),
                downloads: fragments.downloads(made, at - 1, which),
            }

        views = [strip, compare, words, downloads]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # Without a limit: the service has requests wait, says their place, and can stop them.
        model = {"concurrency_limit": None, "show_progress_on": status, "api_visibility": "private"}
        patients.click(pick, None, [prior, brush, about, prompt], **quick)
        upload.upload(take, upload, [prior, brush, about, upload], concurrency_limit=2, api_visibility="private")
        for changed in (prompt.change, severity.change):
            changed(typed, [prompt, severity], reading, trigger_mode="always_last", **quick)
        find.click(mark, [prior, prompt], [brush, status], **model)
        clear.click(lambda image: {brush: _brushed(service, image)}, prior, [brush], **quick)
        asked = [prior, prompt, later, severity, futures, seed, brush]
        made = [answer, status, result, step, future, *views]
        gr.on((edit.click, prompt.submit), run, asked, made, trigger_mode="once", **model)
        halt.click(halted, None, status, **quick)
        page.unload(end)
        for choice in (step.input, future.input):
            choice(shown, [answer, step, future], views, **quick)
        page.load(typed, [prompt, severity], reading, **quick)
    return page


def serve(page: Any, host: str, port: int) -> str:
    """Starts a page in threads of this process; returns its address. UserError: the port is taken."""
    from starlette.middleware import Middleware

    gr = gradio()
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # its own come from elsewhere
    try:
        _, address, _ = page.queue().launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            inbrowser=False,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            max_file_size=uploads.MOST_BYTES,
            state_session_capacity=64,
            theme=theme,
            css_paths=_STATIC / "style.css",
            app_kwargs={"middleware": [Middleware(_Guard)], "docs_url": None, "redoc_url": None},
        )
    except OSError:
        raise UserError(_TAKEN.format(host, port, "taken")) from None
    return address


def check_free(host: str, port: int) -> None:
    """UserError for an address that cannot be listened on: said before a model is loaded."""
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise UserError(_TAKEN.format(host, port, error.strerror or error)) from None


class _Guard:
    """ASGI: every answer carries the policy that keeps the browser on this server."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": _POLICY, "referrer-policy": "no-referrer"}
                pairs = [(key.encode(), value.encode()) for key, value in extra.items()]
                message = {**message, "headers": [*message["headers"], *pairs]}
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)


def _sentence(error: UserError) -> str:
    """An error as a sentence: from a capital to a full stop."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _given(image: np.ndarray | None) -> np.ndarray:
    if image is None:
        raise UserError("choose a patient or upload a film first")
    return image


def _read(service: Service, text: str, grade: int) -> tuple[str, str, Any]:
    if not text.strip():
        return text, text, None
    sent, read = service.read(text, _grade(grade))
    return sent, text, read


def _teller(progress: Any) -> Tell:
    return lambda share, told: progress(share or 0.0, desc=told)  # without a share Gradio shows no words


def _grade(number: int) -> str | None:
    return GRADE_NAMES[int(number)] if number else None


def _brushed(service: Service, image: np.ndarray | None, mask: np.ndarray | None = None) -> dict[str, Any]:
    """The brush's value: the film, and the places that are marked; without places for a model that takes no mask."""
    if image is None:
        return {}
    rows, columns = service.grid or (0, 0)
    marked = np.zeros((rows, columns), bool) if mask is None else mask
    return {
        "image": fragments.data_uri(images.png(image)),
        "columns": max(columns, 1),
        "marks": ["pe-on" if one else "" for one in marked.ravel().tolist()],
    }


def _ask(service, image, prompts, grade, count, number, brushed) -> Ask:
    """What the components hold as a request. UserError: a film or a prompt is missing, too many steps."""
    prompts = (prompts[0], *(line for line in prompts[1:] if line.strip()))
    if len(prompts) > MOST_STEPS:
        raise UserError(f"course: {len(prompts)} steps, at most {MOST_STEPS} are taken")
    mask, marks = None, (brushed or {}).get("marks") or ()
    if service.grid and any(marks):
        mask = np.asarray([bool(one) for one in marks])
        if mask.size != service.grid[0] * service.grid[1]:
            raise UserError("mask: is of another model; choose the film again")
        mask = mask.reshape(service.grid)
    count = min(max(int(count or 1), 1), MOST_FUTURES)
    return Ask(_given(image), prompts, count, request.seed(0 if number is None else number), _grade(grade), mask)
