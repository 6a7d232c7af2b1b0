"""Converts a synthetic sharded bfloat16 checkpoint of Emu3-8B's widths in and out again; prints JSON lines.

    make bench-convert        # or: .venv/bin/python benchmarks/convert.py [--layers=3] [--dir=DIR]

Three of the 32 layers with both vocabulary tables (184,622 x 4,096) are 4.3 GB. Each direction runs in a process of its
own; a row has its seconds and its peak resident memory. The last line compares every byte. DIR (default: a temporary
folder) needs three times that room.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from progemu_jax.checkpoints import safetensors
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.convert.emu3 import names as emu3_names


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--dir", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        run(Path(folder), args.layers)


def run(folder, layers):
    source, run_dir, back = (folder / name for name in ("source", "run", "back"))
    size = write(source, layers)
    print(json.dumps({"bytes": size, "shards": len(list(source.glob("*.safetensors")))}), flush=True)
    for what, one, two in (("in", source, run_dir), ("out", run_dir, back)):
        start = time.perf_counter()
        command = [sys.executable, __file__, "--child", str(one), str(two)]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        row = {"convert": what, "seconds": round(time.perf_counter() - start, 1)}
        print(json.dumps(row | json.loads(done.stdout.splitlines()[-1])), flush=True)
    one, two = (safetensors.open_folder(path) for path in (source, back))
    same = one.keys() == two.keys() and all(
        t.dtype == two[n].dtype and all(np.array_equal(*pair) for pair in zip(*map(bits, (t, two[n])), strict=True))
        for n, t in one.items()
    )
    print(json.dumps({"tensors": len(one), "bit_identical": bool(same)}))
    if not same:
        sys.exit(1)


def bits(tensor):
    return (block.view(np.uint16) for block in tensor.blocks())


def child(source, target):
    """One conversion; prints its peak resident memory."""
    from progemu_jax.convert.convert import convert

    said = convert(source, target)
    # Not getrusage: its peak is inherited from the parent, which made the numbers.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 2**20
    print(json.dumps({"peak_rss_gib": round(peak, 3), "said": said.partition(": ")[2]}))


def write(folder, layers):
    """A sharded checkpoint of random numbers, block by block; its size in bytes."""
    folder.mkdir()
    config = {"model_type": "Emu3", "num_hidden_layers": layers, "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    model = emu3_folder.configs.language_model(folder, config, "bfloat16")
    entries = emu3_folder.language_entries(model, emu3_names.LANGUAGE_PREFIXES["original"][0])
    shapes = {entry.name: ("BF16", entry.tensor_shape) for entry in entries}
    writer = safetensors.Writer(folder, safetensors.shard(shapes, limit=10**9))
    rng = np.random.default_rng(0)
    for name, (_, shape) in shapes.items():
        rows = max(1, 2**26 // max(1, int(np.prod(shape[1:]))))
        for start in range(0, shape[0], rows):
            count = min(rows, shape[0] - start)
            values = rng.integers(2**16, size=(count, *shape[1:]), dtype=np.uint16)  # any bits will do
            writer.write(name, values, start)
    writer.close()
    return sum(2 * int(np.prod(shape)) for _, shape in shapes.values())


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
