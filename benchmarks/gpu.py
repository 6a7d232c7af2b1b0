"""The system on one NVIDIA GPU in at most 8 minutes, compilation included; JSON lines.

    make gpu        # or: python benchmarks/gpu.py [--seconds=480] [--only=peer,emu3] [--out=FILE]
    make gpu SIZE=small     # the same with tiny models, on any device: does everything run? smallest: a part of it

| Part | What is measured | Seconds |
| --- | --- | --- |
| device | versions, memory bandwidth, matrix products | 20 |
| peer | the standing case of benchmarks/decode.py beside `transformers`' Emu3 | 105 |
| emu3 | decoding at Emu3-8B's sizes, random weights: seconds an image and text, share of the memory's speed | 160 |
| train | a training step of 1.5 billion weights at 9,216 tokens: tokens a second, MFU | 75 |
| tokenizer | Emu3's image tokenizer at 512 x 512 | 40 |
| unet | Stable Diffusion's UNet, 50 steps with two guidance scales | 40 |
| agreement | GPU and CPU compute the same, with `jax.jit` and without | 40 |

Each part is a process of its own that is killed when its time is over; time that a part leaves goes to those after it.
A row is in the file as soon as it is measured, so that what is cut leaves results: `$OUT/gpu-<device>.jsonl`, or
`benchmarks/results/gpu-<device>.jsonl`. It needs Python, JAX for CUDA, Flax, Optax, Orbax, safetensors and tiktoken;
the project need not be installed. Status 1: a part failed, or GPU and CPU do not agree.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Part: (file of gpu_parts, seconds). In order of worth.
PARTS = {
    "device": ("models", 20),
    "peer": ("peer", 105),
    "emu3": ("emu3", 160),
    "train": ("models", 75),
    "tokenizer": ("models", 40),
    "unet": ("models", 40),
    "agreement": ("agreement", 40),
}
INNER = {"reference": ("agreement", 0)}  # what a part starts itself
SIZES = ("full", "small", "smallest")
SPARE = 3.0  # seconds that a part has in hand before its process is killed


class Run:
    """What a part needs: `small`, whether models are tiny; `few`, whether some will do; `say` a row; `left` seconds."""

    def __init__(self, part, size, until, write):
        self.part, self.size, self.until, self.write = part, size, until, write
        self.small, self.few = size != "full", size == "smallest"
        self.failed = False

    def left(self):
        return self.until - time.time()

    def say(self, **row):
        """A row of output: numbers to five digits."""
        self.failed |= "failed" in row or row.get("within") is False
        self.write({"part": self.part} | {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()})

    def attempt(self, name, call):
        """call(), or a row that says why not, and None."""
        try:
            return call()
        except Exception as error:
            self.say(failed=f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            return None


class Rows:
    """The file of results: named after the device as soon as a row says which, written row by row."""

    def __init__(self, path, append):
        self.path, self.mode, self.waiting, self.began = path, "a" if append else "w", [], time.time()
        self.failed = False

    def __call__(self, row):
        row |= {"at": round(time.time() - self.began, 1)}
        self.failed |= "failed" in row or row.get("within") is False
        print(json.dumps(row), flush=True)
        if self.path is None and "device" in row:
            folder = Path(os.environ.get("OUT") or ROOT / "benchmarks/results")
            name = re.sub(r"[^a-z0-9]+", "-", row["device"].lower()).strip("-")
            self.path = folder / f"gpu-{name}.jsonl"
        self.waiting.append(row)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, self.mode) as file:
                file.writelines(json.dumps(one) + "\n" for one in self.waiting)
            self.waiting, self.mode = [], "a"


def here(parts, size, until, write):
    """Runs parts in this process; -> whether all went well."""
    good = True
    for part in parts:
        run = Run(part, size, until, write)

        def start(run=run, part=part):
            return getattr(importlib.import_module(f"gpu_parts.{(PARTS | INNER)[part][0]}"), part)(run)

        run.attempt(part, start)
        good &= not run.failed
    return good


def watched(part, command, until, write):
    """Runs a part in a process of its own, whose rows are written as they come, and kills it when its time is over."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    timer = threading.Timer(max(0.0, until - time.time()), process.kill)
    timer.start()
    for line in process.stdout:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            write(row)
        else:
            print(line, end="", file=sys.stderr)
    status = process.wait()
    cut = not timer.is_alive()
    timer.cancel()
    if cut:
        write({"part": part, "cut": "its time was over; what it had measured stands above"})
    elif status not in (0, 1):
        write({"part": part, "failed": f"its process ended with status {status}"})


def installed(folder):
    """Where the project is not installed: links in a folder, for this process and those that it starts.

    `data`, `eval` and `configs` are parts of the package by `setup.py` alone, and its version is its metadata's.
    """
    try:
        importlib.metadata.version("progemu-jax")
        importlib.import_module("progemu_jax.data")
        return
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError):
        for name in [name for name in sys.modules if name.split(".")[0] == "progemu_jax"]:
            del sys.modules[name]
    package = Path(folder) / "progemu_jax"
    package.mkdir()
    for source in [*(ROOT / "progemu_jax").iterdir(), *(ROOT / name for name in ("data", "eval", "configs"))]:
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    metadata = Path(folder) / f"progemu_jax-{project['version']}.dist-info/METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    importlib.invalidate_caches()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seconds", type=float, default=float(sum(seconds for _, seconds in PARTS.values())))
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--here", action="store_true", help="all parts in this process, none of which is killed")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := sorted(set(parts) - set(PARTS | INNER)):
        parser.error(f"--only={args.only}: no part {unknown[0]}; choose among {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as folder:
        installed(folder)
        good = run(args, parts)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(not good)  # threads that still compile something are not waited for


def run(args, parts):
    """-> whether all went well."""
    if args.until:  # a part's own process
        return here(parts, args.size, args.until, lambda row: print(json.dumps(row), flush=True))
    rows, until = Rows(args.out, append=parts != list(PARTS)), time.time()
    if args.here:
        here(parts, args.size, until + args.seconds, rows)
    else:
        share = args.seconds / sum(PARTS[part][1] for part in parts)
        for part in parts:
            until += share * PARTS[part][1]
            command = [sys.executable, __file__, f"--size={args.size}", f"--only={part}"]
            watched(part, [*command, f"--until={until - SPARE}"], until, rows)
            if part == "device" and rows.failed:
                break
    print(f"{rows.path}: {'something failed' if rows.failed else 'all parts have run'}", file=sys.stderr)
    return not rows.failed


if __name__ == "__main__":
    main()
