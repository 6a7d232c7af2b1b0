"""Seconds until a model answers in a new process: without kept programs, while they are made, and with them;
prints JSON lines.

    .venv/bin/python benchmarks/first_call.py [--model=phantom]

A line for each of the three: seconds, and those on the processor, of the import, `load`, the first `counterfactual`,
the same again, and one with two futures more. The programs lie in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

CHILD = """
import json, sys, time
marks = [(time.perf_counter(), time.process_time())]
def mark(): marks.append((time.perf_counter(), time.process_time()))
import numpy as np, progemu_jax, progemu_jax.inference.load; mark()
model = progemu_jax.load(sys.argv[1]); mark()
side = model.layout.height * model.tokenizer.config.factor
prior = (np.add.outer(np.arange(side), np.arange(side)) * 2 % 256).astype(np.uint8)
for samples in (1, 1, 3):
    model.counterfactual(prior, "New small left pleural effusion.", num_samples=samples, seed=0); mark()
names = ("import", "load", "first", "again", "three")
taken = {name: [round(b - a, 2) for a, b in zip(*pair)] for name, *pair in zip(names, marks, marks[1:])}
print(json.dumps(taken))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="phantom")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in (("none", "off"), ("made", folder), ("kept", folder)):
            env = {**os.environ, "PROGEMU_CACHE": value}
            env.pop("JAX_COMPILATION_CACHE_DIR", None)
            done = subprocess.run([sys.executable, "-c", CHILD, args.model], env=env, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                sys.exit(done.returncode)
            taken = {call: {"seconds": a, "cpu": b} for call, (a, b) in json.loads(done.stdout).items()}
            print(json.dumps({"programs": name, **taken}), flush=True)


if __name__ == "__main__":
    main()
