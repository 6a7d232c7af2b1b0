"""python -m progemu_jax.app [--model=phantom|RUN|DIR|hf:owner/name] [--host=127.0.0.1] [--port=7860] [--patients=6]

A page in the browser that edits films (`make app`): patients of the phantom or a film of one's own, a prompt and how it
is understood, severity, a mask, several futures, a course; before and after, text, downloads. --model: as
`progemu_jax.load` takes one. Only this machine can reach it unless --host says otherwise; it asks nobody anything, and
what is uploaded is deleted as soon as it is read. Ends with ctrl-C.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import warnings

from progemu_jax import pretrained
from progemu_jax.app import page
from progemu_jax.app.service import PATIENTS, Service
from progemu_jax.errors import PromptWarning, UserError, exit_status
from progemu_jax.files.command_line import Parser

MOST = 24  # patients


def app(model: str, host: str, port: int, patients: int) -> int:
    """Serves until ctrl-C or SIGTERM. UserError: nothing to load, no Gradio, a port that is taken."""
    for name, value, least, most in (("patients", patients, 0, MOST), ("port", port, 1, 65535)):
        if not least <= value <= most:
            raise UserError(f"--{name}={value}: expected {least} to {most}")
    page.gradio()  # before what takes longer
    page.check_free(host, port)
    warnings.simplefilter("ignore", PromptWarning)  # the page shows it
    over = threading.Event()
    with tempfile.TemporaryDirectory(prefix="progemu-app-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        service = Service.load(model, patients)
        address = page.serve(page.build(service), host, port)
        service.warm  # noqa: B018 - is begun
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: over.set())
        print(f"The app: {address} (ctrl-C ends it)", flush=True)
        over.wait()
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--model", default=pretrained.NAME, metavar="phantom|RUN|DIR|hf:owner/name")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: whoever reaches this machine reaches the app")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--patients", type=int, default=PATIENTS, help="of the phantom, to choose from")
    args = parser.parse_args(argv)
    return exit_status(lambda: app(args.model, args.host, args.port, args.patients))


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # sys.exit would wait for what the model's thread is at, a compilation even
