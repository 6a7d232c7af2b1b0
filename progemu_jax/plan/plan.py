"""What fits where: `--stages=plan` compiles the training step and the sampler for devices that nobody has here.

Each program is lowered from abstract shapes, no array is made, in a process of its own:

- **tpu**: compiled by the TPU's own compiler for a described slice (extra `tpu-plan`; no TPU is needed). Memory is
  what that compiler assigns, bytes sent are read off its program.
- **cpu**: compiled for fake CPU devices. It shows that the program partitions, and what is sent; its memory is that of
  another compiler without the accelerators' fusions and is not shown.
- **analytic**: GPU rows. Counted from shapes by the formulas below, nothing is compiled.

FLOPs are always counted from shapes. Times are rooflines: no run is faster.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

from progemu_jax.config import Config
from progemu_jax.devices.accelerators import GB, PLANNED
from progemu_jax.errors import UserError
from progemu_jax.files.records import write_json
from progemu_jax.plan.counts import Program, roofline, row_by_formula

PROGRAMS = ("train", "sample")


def run(config: Config, plain: dict, workdir: Path) -> dict:
    """Compiles and prints the plan of a config; the same, as JSON, goes to `workdir`/plan.json.

    Args:
      plain: `config` as nested dicts.
    Raises:
      UserError: a mesh or a name that makes no sense, before anything is compiled.
    """
    rows = []
    for program in tqdm(_programs(config), desc="compile", unit="program"):
        rows.append(_compiled_in_child(program, plain))
        print(_line(rows[-1]), flush=True)
    for name in config.plan.accelerators:
        if not PLANNED[name].topologies:
            for program in PROGRAMS:
                for devices in config.plan.devices:
                    mesh = _mesh(config, devices, program)
                    rows.append(row_by_formula(Program(program, mesh, _rows(config, program), name), config))
                    print(_line(rows[-1]), flush=True)
    result = {"name": config.name, "rows": rows}
    write_json(Path(workdir) / "plan.json", result)
    print(f"\n{table(rows)}\n\nplan: {Path(workdir) / 'plan.json'}")
    return result


def _programs(config: Config) -> list[Program]:
    plan = config.plan
    unknown = [name for name in plan.accelerators if name not in PLANNED]
    if unknown:
        raise UserError(f"config.plan.accelerators: {unknown[0]!r} is unknown; choose among {', '.join(PLANNED)}")
    tpus = [name for name in plan.accelerators if PLANNED[name].topologies]
    if tpus and importlib.util.find_spec("libtpu") is None:
        print('plan: no TPU compiler here (pip install -e ".[tpu-plan]"): TPU rows are left out', file=sys.stderr)
        tpus = []
    programs = []
    for devices in plan.devices:
        for name in tpus:
            if devices not in PLANNED[name].topologies:
                known = ", ".join(map(str, PLANNED[name].topologies))
                raise UserError(f"config.plan.devices: {devices}: slices of {name} are known for {known}")
        for program in PROGRAMS:
            mesh, rows = _mesh(config, devices, program), _rows(config, program)
            programs += [Program(program, mesh, rows, target) for target in tpus or ["cpu"]]
    return programs


def _mesh(config: Config, devices: int, program: str) -> tuple[int, int, int]:
    """The config's mesh on so many devices: data takes what fsdp and tensor leave."""
    tensor = config.mesh.tensor
    fsdp = config.mesh.fsdp if program == "train" else 1  # in sampling each data part holds what tensor leaves it
    if devices % (fsdp * tensor):
        raise UserError(f"mesh: fsdp={fsdp} tensor={tensor} does not divide {devices} devices; choose another mesh")
    return devices // (fsdp * tensor), fsdp, tensor


def _rows(config: Config, program: str) -> int:
    """Sequences, or cases, on each part of the batch."""
    return config.plan.rows if program == "train" else config.plan.cases


def _compiled_in_child(program: Program, plain: dict) -> dict:
    """In a process of its own: the number of fake devices is settled before JAX starts, and memory goes back."""
    flags = "--xla_cpu_multi_thread_eigen=true"
    if program.target == "cpu":
        flags += f" --xla_force_host_platform_device_count={program.devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "progemu_jax.plan.programs"],
        input=json.dumps({"program": dataclasses.asdict(program), "config": plain}),
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        why = lines[-1] if lines else f"status {done.returncode}"
        return {**dataclasses.asdict(program), "kind": "compiled", "failed": why[:300]}
    return json.loads(done.stdout.splitlines()[-1])


def _line(row: dict) -> str:
    """A row for the terminal."""
    where = "x".join(map(str, row["mesh"]))
    if "failed" in row:
        return (
            f"{row['program']} on {math.prod(row['mesh'])} {row['target']} ({where}): does not compile: {row['failed']}"
        )
    sent = ", ".join(f"{kind} {value / GB:.2f}" for kind, value in sorted(row["sent"].items())) or "nothing"
    text = f"{row['program']} on {math.prod(row['mesh'])} {row['target']} ({where}), {row['kind']}: sends GB: {sent}"
    if "memory" in row:
        text += "; memory GB: " + ", ".join(f"{k} {v / GB:.2f}" for k, v in row["memory"].items())
    if "recomputed" in row:
        text += f"; computed again: {row['recomputed']}; offloaded: {row['offloaded']}"
    return text + (f"; compiled in {row['seconds_to_compile']} s" if "seconds_to_compile" in row else "")


def table(rows: list[dict]) -> str:
    """Markdown: one row a program, device and mesh."""
    columns = (
        "Program", "Devices", "Mesh", "GB a device", "Fits", "TFLOP a device", "GB sent",
        "Roofline s: arithmetic, memory, links", "Tokens/s", "How known",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for row in rows:
        name, devices = row["target"], math.prod(row["mesh"])
        mesh = " x ".join(map(str, row["mesh"]))
        if "failed" in row:
            why = "memory" if "memory" in row["failed"].lower() else "see plan.json"
            lines.append(f"| {row['program']} | {devices} {name} | {mesh} | | no ({why}) | | | | | compiled |")
            continue
        sent, flops = sum(row["sent"].values()) / GB, row["flops_done"] / devices / 1e12
        if name not in PLANNED:
            how = "compiled for fake CPU devices"
            lines.append(f"| {row['program']} | {devices} | {mesh} | | | {flops:.0f} | {sent:.1f} | | | {how} |")
            continue
        a, memory, times = PLANNED[name], row["memory"]["total"], roofline(row, name)
        speed = f"{row['tokens'] / times['step']:,.0f}"
        parts = ", ".join(f"{times[k]:.2f}" for k in ("arithmetic", "memory", "links"))
        how = f"compiled for {a.title}" if row["kind"] == "compiled" else "analytic"
        fits = "yes" if memory < 0.92 * a.memory else "no"
        lines.append(
            f"| {row['program']} | {devices} {a.title} | {mesh} | {memory / GB:.1f} | {fits} | {flops:.0f} | "
            f"{sent:.1f} | {parts} | {speed} | {how} |"
        )
    return "\n".join(lines)
