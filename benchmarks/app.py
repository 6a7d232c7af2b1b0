"""Seconds until the app answers in a browser, in the environment of `make test-app`; prints a JSON line.

    .venv-app/bin/python benchmarks/app.py [--model=phantom] [--port=7899]

start: until the address is printed; first: from then to the first answer on the page, one future with its text, the
browser's own start in it; later: each of three more; four, four_again: four futures. PROGEMU_CACHE=DIR names another
folder of compiled programs; an empty one is a machine on which nothing has run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import time

PROMPTS = ("New right pneumothorax.", "Increased cardiomegaly, now severe.", "New large left pleural effusion.")
ASKED = (("New left pneumothorax.", 1), *((prompt, 1) for prompt in PROMPTS), *((prompt, 4) for prompt in PROMPTS))
CHANGED = "o => { const a = document.querySelector('#compare .pe-after'); return a && a.src !== o; }"
MOST = 300_000  # milliseconds of any wait


def measure(model: str, port: int) -> dict:
    """Starts the app and edits the second patient; seconds by name."""
    from playwright.sync_api import sync_playwright

    command = [sys.executable, "-m", "progemu_jax.app", f"--model={model}", f"--port={port}"]
    marks = [time.perf_counter()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        try:
            address = next(line.split()[2] for line in server.stdout if line.startswith("The app: "))
            marks.append(time.perf_counter())
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(MOST)
            page.goto(address)
            page.click("#patients button:nth-of-type(2)")
            page.wait_for_selector("#reading li")
            shown = None
            for prompt, futures in (
                ("New left pneumothorax.", 1),
                *((p, 1) for p in PROMPTS),
                *((p, 4) for p in PROMPTS),
            ):
                page.fill("#prompt textarea", prompt)
                page.fill("#futures input[type=number]", str(futures))
                page.press("#futures input[type=number]", "Tab")
                page.click("#edit")
                page.wait_for_function(CHANGED, arg=shown)
                shown = page.get_attribute("#compare .pe-after", "src")
                marks.append(time.perf_counter())
            browser.close()
        finally:
            server.terminate()
    start, first, *rest = (round(b - a, 1) for a, b in itertools.pairwise(marks))
    return {"start": start, "first": first, "later": rest[:3], "four": rest[3], "four_again": rest[4:]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--port", type=int, default=7899)
    args = parser.parse_args()
    load = round(os.getloadavg()[0], 1)
    print(json.dumps({"load_before": load, **measure(args.model, args.port)}))


if __name__ == "__main__":
    main()
