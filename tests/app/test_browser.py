"""The app in a real browser (make test-app): Debian's chromium, driven by Playwright. Every wait has an end."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import dicoms, tiny_diffusion
from support.cohorts import chest

from progemu_jax import provenance
from progemu_jax.eval.report import STANDING

sync_api = pytest.importorskip("playwright.sync_api", reason="in an environment of its own: make test-app")
pytestmark = [pytest.mark.browser, pytest.mark.timeout(280)]
ROOT = Path(__file__).resolve().parents[2]
SHOTS = Path(os.environ.get("SHOTS", "runs/app"))  # screenshots, to be looked at
START, WAIT = 120, 120  # seconds, at most: of a server until it answers, of anything on the page
PROMPT = "New large left pleural effusion."
SLOW = """
import os, sys, time, types
from progemu_jax.app.__main__ import main
from progemu_jax.sampling import watch

def monotonic():  # before and after each block
    time.sleep(0.25 * os.path.exists(sys.argv[1]))
    return time.monotonic()

watch.BLOCK, watch.time = 0, types.SimpleNamespace(monotonic=monotonic)  # a pass a block
os._exit(main(sys.argv[2:]))
"""
expect = sync_api.expect


@contextlib.contextmanager
def serving(folder, *flags, program=("-m", "progemu_jax.app")):
    """Address of an app that runs; its temporary files lie in `folder`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *program, f"--port={port}", "--patients=2", *flags]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    ) as process:  # fmt: skip
        late = threading.Timer(START, process.kill)
        late.start()
        try:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"The app: (http\S+)", line):
                    break
            else:
                pytest.fail("".join(lines)[-2000:] or "the app did not start in time")
            late.cancel()
            reader = threading.Thread(target=lines.extend, args=(process.stdout,), daemon=True)
            reader.start()  # a full pipe would stop it
            yield found[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            reader.join(timeout=30)
            assert "Traceback" not in "".join(lines)
        finally:
            late.cancel()
            process.kill()


@pytest.fixture(scope="module")
def temporary(tmp_path_factory):
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(temporary):
    with serving(temporary) as found:
        yield found
    assert not list(temporary.glob("progemu-app-*"))


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    assert path, "no chromium: make test-app installs it where it is root"
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"], timeout=1000 * WAIT
        )
        yield found
        found.close()


@pytest.fixture
def opened(browser, address):
    """Opens the page, in a session of its own each time; nothing may go elsewhere, no script may fail."""
    asked, failed, contexts = [], [], []

    def open_page(at=address, **options):
        context = browser.new_context(accept_downloads=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(1000 * WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        answer = page.goto(at)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        page.wait_for_selector("#edit")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [url for url in asked if not re.match(r"(http://127\.0\.0\.1:\d+/|data:|blob:)", url)] == []
    assert failed == []


def choose(page, number=1):
    page.click(f"#patients button:nth-of-type({number})")
    expect(page.locator("#about")).to_contain_text(f"Patient {number}", timeout=1000 * WAIT)
    expect(page.locator("#brush img")).to_be_visible(timeout=1000 * WAIT)


def edit(page, prompt=PROMPT):
    page.fill("#prompt textarea", prompt)
    page.click("#edit")
    done(page)


def done(page):
    expect(page.locator("#status")).to_contain_text("Done in", timeout=1000 * WAIT)
    expect(page.locator("#compare .pe-compare")).to_be_visible(timeout=1000 * WAIT)


def shot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.evaluate("window.scrollTo(0, 0)")
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def test_type_edit_compare_download(opened, tmp_path):
    page = opened(viewport={"width": 1200, "height": 900})
    expect(page.get_by_text(STANDING)).to_be_visible()
    choose(page)
    page.locator("#prompt textarea").fill("")
    page.locator("#prompt textarea").press_sequentially("New rib fracture.")
    expect(page.locator("#reading")).to_contain_text("fracture", timeout=1000 * WAIT)
    expect(page.locator("#reading .pe-warn")).to_be_visible()
    page.fill("#prompt textarea", PROMPT)
    expect(page.locator("#reading")).to_contain_text("severe left pleural effusion: new", timeout=1000 * WAIT)
    page.locator("#futures input[type=number]").fill("2")
    edit(page)
    assert page.locator("#words .pe-text li").count() >= 1
    expect(page.locator("#compare")).to_contain_text("Spread of the 2 futures")
    slider = page.locator("#compare input[type=range]")
    slider.fill("10")
    assert "10%" in page.locator("#compare .pe-compare").get_attribute("style")
    first = page.locator("#compare .pe-after").get_attribute("src")
    page.locator("#future label").nth(1).click()
    expect(page.locator("#compare .pe-after")).not_to_have_attribute("src", first, timeout=1000 * WAIT)
    shot(page, "answer")
    png, packed = (_download(page, text, tmp_path) for text in ("this image", "predictions folder"))
    facts = provenance.read_png(png)
    assert facts["Comment"] == provenance.SYNTHETIC
    assert (facts["progemu:prompt"], facts["progemu:sample"]) == (PROMPT, "1")
    with zipfile.ZipFile(packed) as held:
        rows = [json.loads(line) for line in held.read("predictions/predictions.jsonl").splitlines()]
    assert [row["prompt"] for row in rows] == [PROMPT] * 2


def _download(page, text, folder):
    with page.expect_download(timeout=1000 * WAIT) as waiting:
        page.locator("#downloads a", has_text=text).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_a_mask_is_painted_found_and_cleared(opened):
    page = opened()
    choose(page)
    cells, marked = page.locator("#brush .pe-cell"), page.locator("#brush .pe-on")
    expect(page.locator("#reading")).to_contain_text("Understood", timeout=1000 * WAIT)
    one, other = (_at_rest(page, cells.nth(n)) for n in (0, 2))
    page.mouse.move(one["x"] + 2, one["y"] + 2)
    page.mouse.down()
    page.mouse.move(other["x"] + 2, other["y"] + 2, steps=6)
    page.mouse.up()
    expect(marked).to_have_count(3)
    edit(page)
    expect(marked).to_have_count(3)
    facts = page.locator("#downloads a").first.get_attribute("href")
    assert _facts(facts)["sampling"]["free_codes"] == [3]
    page.click("#find")
    expect(page.locator("#status")).to_contain_text("places are marked", timeout=1000 * WAIT)
    assert marked.count() > 0
    page.click("#clear")
    expect(marked).to_have_count(0)


def _at_rest(page, locator):
    """Where something is, once what is above it has its size."""
    box, before = locator.bounding_box(), None
    while box != before:
        page.wait_for_timeout(200)
        box, before = locator.bounding_box(), box
    return box


def _facts(uri):
    """What a PNG in a data URI says of itself, JSON read."""
    import base64
    import io

    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as image:
        return {"sampling": json.loads(image.text["progemu:sampling"])}


def test_severity_and_a_course(opened):
    page = opened()
    choose(page)
    page.locator("#severity input[type=number]").fill("1")
    page.fill("#prompt textarea", PROMPT)
    expect(page.locator("#reading")).to_contain_text("Sent as: New small left pleural effusion.", timeout=1000 * WAIT)
    page.locator("#severity input[type=number]").fill("0")
    page.fill("#later textarea", "Resolved left pleural effusion.\n")
    edit(page)
    expect(page.locator("#strip figure")).to_have_count(3)
    page.locator("#step label").nth(0).click()
    expect(page.locator("#downloads a").first).to_have_attribute("download", "synthetic-1-1.png", timeout=1000 * WAIT)


def test_mistakes_are_sentences(opened):
    page = opened()
    page.click("#edit")
    expect(page.locator("#status")).to_contain_text("Choose a patient or upload a film first.", timeout=1000 * WAIT)
    choose(page)
    page.fill("#prompt textarea", " ")
    page.click("#edit")
    expect(page.locator("#status")).to_contain_text("Prompt: empty", timeout=1000 * WAIT)


def test_uploads_good_and_bad_are_sentences_and_are_deleted(opened, temporary, tmp_path):
    page = opened()
    film = chest(0, 96)
    (tmp_path / "text.png").write_text("no image " * 20)
    Image.new("1", (20_000, 10_000)).save(tmp_path / "huge.png")
    frames = [Image.fromarray(chest(n, 64)) for n in range(3)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    Image.fromarray(film.astype(np.uint16) * 90).save(tmp_path / "deep.png")
    dicoms.write(tmp_path / "film.dcm", 16 * film.astype(np.uint16))
    told = {
        "text.png": "neither PNG nor JPEG",
        "huge.png": "pixels are refused",
        "moving.gif": "GIF",
        "deep.png": "16-bit image",
        "film.dcm": "DICOM: its own window was applied",
    }
    for name, words in told.items():
        page.locator("input[type=file]").set_input_files(tmp_path / name)
        expect(page.locator("#about")).to_contain_text(words, timeout=1000 * WAIT)
        assert page.locator("#about p").count() == 1
    assert [p for p in temporary.rglob("*") if p.is_file() and p.stat().st_size] == []
    edit(page)  # with the film that came last
    shot(page, "upload")


def test_two_users_at_once_get_their_own_answers(opened):
    pages, prompts = [opened(), opened()], (PROMPT, "New large right pneumothorax.")
    for page, prompt in zip(pages, prompts, strict=True):
        choose(page)
        page.fill("#prompt textarea", prompt)
    for page in pages:
        page.click("#edit")
    for page in pages:
        done(page)
    shown = [page.locator("#words").inner_text() for page in pages]
    assert "left pleural effusion" in shown[0]
    assert "right pneumothorax" in shown[1]


@pytest.fixture(scope="module")
def slow(temporary):
    """Address of an app, and a file: while it is there, a pass takes half a second."""
    gate = temporary / "slow"
    with serving(temporary / "slow-files", program=("-c", SLOW, str(gate))) as found:
        yield found, gate


@pytest.fixture
def two(opened, slow):
    """Two users of it who have asked for nothing yet; the file."""
    address, gate = slow
    gate.unlink(missing_ok=True)
    pages = opened(address), opened(address)
    for page in pages:
        choose(page)
        page.fill("#prompt textarea", PROMPT)
    return *pages, gate


def asks_for_a_course(page):
    """Of six steps, minutes while the file is there; waits until the first one is drawn."""
    page.fill("#later textarea", "Resolved left pleural effusion.\n" * 5)
    page.click("#edit")
    expect(page.locator("#status")).to_contain_text(
        re.compile(r"Step 1 of 6: drawing the image, about \d+ s left"), timeout=1000 * WAIT
    )


def waits(page):
    """Asks for an edit; its place in the queue is in sight."""
    page.click("#edit")
    place = page.locator("#status").get_by_text("Waiting: 1 request before yours")
    expect(place).to_be_visible(timeout=1000 * WAIT)
    expect(place).to_be_in_viewport()


def test_progress_a_place_in_the_queue_and_stop(two):
    """Each stops a request of its own alone, and the next one is served."""
    first, second, gate = two
    statuses = first.locator("#status"), second.locator("#status")
    edit(first)
    shown = first.locator("#compare .pe-after").get_attribute("src")
    gate.touch()
    asks_for_a_course(first)
    share = float(re.search(r"([\d.]+)%", statuses[0].inner_text())[1])
    assert 0 < share < 100
    expect(statuses[0]).not_to_contain_text(f"{share}%", timeout=1000 * WAIT)
    shot(first, "progress")
    waits(second)
    shot(second, "waits")
    second.click("#stop")
    expect(statuses[1]).to_contain_text("Stopped", timeout=1000 * WAIT)
    expect(statuses[1]).not_to_contain_text("Waiting")
    expect(statuses[0]).to_contain_text("Step 1 of 6")
    waits(second)
    first.click("#stop")
    expect(statuses[0]).to_contain_text("Stopped", timeout=1000 * WAIT)
    expect(statuses[0]).not_to_contain_text("Step")
    assert first.locator("#compare .pe-after").get_attribute("src") == shown
    shot(first, "stopped")
    expect(statuses[1]).to_contain_text("Drawing the image", timeout=1000 * WAIT)
    first.fill("#later textarea", "")
    waits(first)
    gate.unlink()
    for page in (first, second):
        done(page)


def test_a_closed_pages_request_ends(two):
    first, second, gate = two
    gate.touch()
    asks_for_a_course(first)
    waits(second)
    first.close()
    expect(second.locator("#status")).to_contain_text("Drawing the image", timeout=1000 * WAIT)
    gate.unlink()
    done(second)


def _tab_to(page, selector, most=60):
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => !!document.activeElement && document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"{selector}: not reached by Tab")


def test_by_keyboard_alone(opened):
    page = opened()
    _tab_to(page, "#patients button")
    page.keyboard.press("Enter")
    expect(page.locator("#brush img")).to_be_visible(timeout=1000 * WAIT)
    _tab_to(page, "#brush [role=application], #brush[role=application]")
    for key in ("ArrowRight", "ArrowDown", " "):
        page.keyboard.press(key)
    expect(page.locator("#brush .pe-on")).to_have_count(1)
    page.keyboard.press(" ")
    expect(page.locator("#brush .pe-on")).to_have_count(0)
    _tab_to(page, "#prompt textarea")
    page.keyboard.press("Control+A")
    page.keyboard.type(PROMPT)
    _tab_to(page, "#edit, #edit button")
    page.keyboard.press("Enter")
    done(page)
    _tab_to(page, "#compare input")
    page.keyboard.press("ArrowRight")
    assert page.locator("#compare input").input_value() == "51"
    _tab_to(page, "#downloads a")


def test_400_pixels_wide_nothing_is_cut_off_and_the_line_stays_in_sight(opened):
    page = opened(viewport={"width": 400, "height": 800})
    choose(page)
    edit(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
    assert page.evaluate("window.scrollY") > 200
    box = page.locator("#standing").bounding_box()
    assert -1 <= box["y"] <= 5
    page.screenshot(path=SHOTS / "narrow-scrolled.png")
    shot(page, "narrow")


def test_a_diffusion_model_has_its_page(opened, tmp_path):
    model = tiny_diffusion.write(tmp_path / "diffusion")
    with serving(tmp_path / "temporary", f"--model={model}", "--patients=1") as at:
        page = opened(at)
        choose(page)
        for absent in ("#find", "#later"):
            expect(page.locator(absent)).to_have_count(0)
        assert page.locator("#brush .pe-cell").count() == 0
        edit(page)
        expect(page.locator("#words")).to_contain_text("writes no text")
        shot(page, "diffusion")
