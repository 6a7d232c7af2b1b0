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
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from progemu_jax.errors import UserError

GB = 1e9


@dataclass(frozen=True)
class Accelerator:
    """Public figures of one device: dense bf16 FLOP/s, bytes of memory, bytes/s of memory and of links (one direction).

    near: devices that the fast links join; beyond them `far` counts. topology: devices -> name of a slice, for TPUs.
    """

    title: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    near: int
    far: float
    topologies: dict[int, str] = dataclasses.field(default_factory=dict, hash=False)


# NVIDIA's data sheets of H100 SXM and H200 SXM (NVLink 900 GB/s both directions together; one 400 Gb/s network port a
# GPU in a DGX); Google's pages on TPU v5p (ICI 4,800 Gb/s a chip) and v6e (3,584 Gb/s).
ACCELERATORS = {
    "H100": Accelerator("H100 SXM", 989e12, 80 * GB, 3.35e12, 450e9, 8, 50e9),
    "H200": Accelerator("H200 SXM", 989e12, 141 * GB, 4.8e12, 450e9, 8, 50e9),
    "v5p": Accelerator(
        "TPU v5p", 459e12, 95 * GB, 2.765e12, 600e9, 8960, 600e9, {8: "2x2x2", 64: "4x4x4", 256: "4x8x8"}
    ),
    "v6e": Accelerator("TPU v6e", 918e12, 32 * GB, 1.64e12, 448e9, 256, 448e9, {8: "2x4", 64: "8x8", 256: "16x16"}),
}
PROGRAMS = ("train", "sample")


@dataclass(frozen=True)
class Case:
    """One program on one mesh (data, fsdp, tensor) with `rows` sequences on each part of the batch."""

    program: str
    mesh: tuple[int, int, int]
    rows: int
    target: str  # a TPU of ACCELERATORS, or "cpu"

    @property
    def devices(self) -> int:
        return math.prod(self.mesh)


def run(config: Any, plain: dict, workdir: Path) -> dict:
    """Compiles and prints the plan of a config; the same, as JSON, goes to `workdir`/plan.json.

    Args:
      plain: `config` as nested dicts.
    Raises:
      UserError: a mesh or a name that makes no sense, before anything is compiled.
    """
    from tqdm import tqdm

    from progemu_jax.records import write_json

    cases = _cases(config)
    rows = []
    for case in tqdm(cases, desc="compile", unit="program"):
        rows.append(_compiled_in_child(case, plain))
        print(_line(rows[-1]), flush=True)
    for name in config.plan.accelerators:
        if not ACCELERATORS[name].topologies:
            for program in PROGRAMS:
                for devices in config.plan.devices:
                    case = Case(program, _mesh(config, devices, program), _rows(config, program), name)
                    rows.append(_analytic(case, config))
                    print(_line(rows[-1]), flush=True)
    result = {"name": config.name, "rows": rows}
    write_json(Path(workdir) / "plan.json", result)
    print(f"\n{table(rows)}\n\nplan: {Path(workdir) / 'plan.json'}")
    return result


def _cases(config: Any) -> list[Case]:
    plan = config.plan
    unknown = [name for name in plan.accelerators if name not in ACCELERATORS]
    if unknown:
        raise UserError(f"config.plan.accelerators: {unknown[0]!r} is unknown; choose among {', '.join(ACCELERATORS)}")
    tpus = [name for name in plan.accelerators if ACCELERATORS[name].topologies]
    if tpus and importlib.util.find_spec("libtpu") is None:
        print(
            "plan: no TPU compiler here (pip install 'progemu-jax[tpu-plan]'): TPU rows are left out", file=sys.stderr
        )
        tpus = []
    cases = []
    for devices in plan.devices:
        for name in tpus:
            if devices not in ACCELERATORS[name].topologies:
                known = ", ".join(map(str, ACCELERATORS[name].topologies))
                raise UserError(f"config.plan.devices: {devices}: slices of {name} are known for {known}")
        for program in PROGRAMS:
            mesh, rows = _mesh(config, devices, program), _rows(config, program)
            cases += [Case(program, mesh, rows, target) for target in tpus or ["cpu"]]
    return cases


def _mesh(config: Any, devices: int, program: str) -> tuple[int, int, int]:
    """The config's mesh on so many devices: data takes what fsdp and tensor leave."""
    tensor = config.mesh.tensor
    fsdp = config.mesh.fsdp if program == "train" else 1  # in sampling each data part holds what tensor leaves it
    if devices % (fsdp * tensor):
        raise UserError(f"mesh: fsdp={fsdp} tensor={tensor} does not divide {devices} devices; choose another mesh")
    return devices // (fsdp * tensor), fsdp, tensor


def _rows(config: Any, program: str) -> int:
    return config.plan.rows if program == "train" else config.plan.cases


def _compiled_in_child(case: Case, plain: dict) -> dict:
    """In a process of its own: the number of fake devices is settled before JAX starts, and memory goes back."""
    flags = "--xla_cpu_multi_thread_eigen=true"
    if case.target == "cpu":
        flags += f" --xla_force_host_platform_device_count={case.devices}"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "progemu_jax.plan"],
        input=json.dumps({"case": dataclasses.asdict(case), "config": plain}),
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if re.match(r"[\w.]*(Error|Exception)\b", line)]
        why = lines[-1] if lines else f"status {done.returncode}"
        return {**dataclasses.asdict(case), "kind": "compiled", "failed": why[:300]}
    return json.loads(done.stdout.splitlines()[-1])


# --- in the child ---


def _compile(case: Case, config: Any) -> dict:
    """Lowers and compiles one case; returns its row."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh

    from progemu_jax import hlo, sharding

    if case.target == "cpu":
        devices = jax.devices()
    else:
        from jax.experimental import topologies

        name = f"{case.target}:{ACCELERATORS[case.target].topologies[case.devices]}"
        devices = topologies.get_topology_desc(name, platform="tpu").devices
    mesh = Mesh(np.asarray(devices).reshape(case.mesh), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    model, layout, task = _parts(config, case.mesh[2])
    program = {"train": _train_program, "sample": _sample_program}[case.program]
    started = time.monotonic()
    function, arguments = program(case, config, model, layout, task, mesh)
    with jax.set_mesh(mesh):
        lowered = function.lower(*arguments)
    compiled = lowered.compile()
    seconds = time.monotonic() - started
    memory = compiled.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
    row = {
        **dataclasses.asdict(case),
        "kind": "compiled",
        "seconds_to_compile": round(seconds, 1),
        "sent": hlo.collectives(compiled.as_text(), case.devices),
        **counts(model, layout, case, config),
    }
    if case.target != "cpu":
        row["memory"] = sizes | {"total": sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]}
    return row


def _parts(config: Any, tensor: int) -> tuple:
    """(transformer config, layout, task config); the vocabulary's size is taken as the config gives it."""
    from progemu_jax import vocab
    from progemu_jax.sequence import Layout

    model, task = config.progemu.model, config.progemu.task
    size = model.vocab_size or vocab.load(config.vocabulary or None, config.tokenizer.model.codebook_size).size
    side = config.data.image_size // config.tokenizer.model.factor
    model = dataclasses.replace(model, vocab_size=size, max_length=task.length)
    if model.padded_vocab_size is None and size % tensor:
        model = dataclasses.replace(model, padded_vocab_size=-(-size // tensor) * tensor)
    return model, Layout(side, side, task.length, task.prompt_budget), task


def _train_program(case, config, model, layout, task, mesh):
    import jax
    import jax.numpy as jnp

    from progemu_jax import sharding
    from progemu_jax.tasks.progemu import ProgEmuTask

    train = config.progemu.stage2
    rows = case.mesh[0] * case.mesh[1] * case.rows * train.accumulate
    task = ProgEmuTask(model, dataclasses.replace(task, soften=0.0), dataclasses.replace(train, batch_size=rows))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    shardings = task.state_shardings(mesh, abstract)
    state = _placed(abstract, shardings)
    kinds = {"tokens": "int32", "positions": "int32", "kinds": "int32", "aligned": "int32", "weights": "float32"}
    where = sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct((rows, layout.length), dtype, sharding=where) for name, dtype in kinds.items()}

    def step(state, batch, seed):
        return task.train_step(state, batch, jax.random.key(seed))

    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)), (state, batch, seed)


def _sample_program(case, config, model, layout, task, mesh):
    import jax
    import jax.numpy as jnp

    from progemu_jax import sharding
    from progemu_jax.models import transformer
    from progemu_jax.sampler import Sampler
    from progemu_jax.sampling.engine import Grammar, Prompts, unstacked

    del task
    codebook, policy = config.tokenizer.model.codebook_size, config.sample.policy
    start = model.vocab_size - codebook
    grammar = Grammar(*range(4), text_size=start - 8, visual_start=start, codebook_size=codebook, stops=(start - 1,))
    prepared = dataclasses.replace(model, scan_layers=False)

    def init(key):
        return unstacked(transformer.init_params(model, key), model, grammar)[0]

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.param_shardings(abstract, transformer.LOGICAL_AXES, mesh, sharding.SAMPLING_RULES)
    cases = case.mesh[0] * case.mesh[1] * case.rows
    rows, slots = cases * (2 if policy.guided else 1), _prompt_slots(layout)
    where = sharding.batch_sharding(mesh)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    prompts = Prompts(
        array(jnp.int32, rows, slots),
        array(jnp.int32, rows, slots),
        array(jnp.bool_, rows, slots),
        array(jnp.int32, rows, layout.height, layout.width + 1),
    )

    sampler = Sampler(None, prepared, layout, None, None, policy, "plan").on(mesh)
    sampler.grammar = grammar
    keys = array(jax.random.key(0).dtype, cases)
    grid = (cases, layout.height, layout.width)
    drawn = (prompts, keys, array(jnp.bool_, *grid), array(jnp.int32, *grid))
    return sampler.over_mesh(policy, True, prepared), (_placed(abstract, shardings), *drawn)


def _placed(abstract, shardings):
    import jax

    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


# --- counted from shapes ---


def _prompt_slots(layout: Any) -> int:
    """Prompt tokens of a case: the prior image and 64 tokens of text and structure, up to a multiple of 32."""
    return -(-(layout.image_tokens + 64) // 32) * 32


def _parameters(model: Any) -> dict[str, int]:
    """Parameters that multiply: in one layer, in the head; and of both vocabulary tables."""
    m, f, d = model.hidden_size, model.intermediate_size, model.head_dim
    layer = m * d * (2 * model.num_heads + 2 * model.num_kv_heads) + 3 * m * f
    table = m * (model.padded_vocab_size or model.vocab_size)
    return {"layer": layer, "head": table, "tables": table * (1 if model.tie_embeddings else 2)}


def counts(model: Any, layout: Any, case: Case, config: Any) -> dict:
    """FLOPs of the whole program: `flops` (the model's), `flops_done` (with recomputation); tokens; memory traffic.

    Forward: 2 a parameter and token, and 2 heads x head size a token and key it sees, twice (scores, values). Backward
    is twice that; rematerialisation runs the layers' forward pass once more. Memory traffic of activations is taken as
    30 reads or writes of [tokens, hidden] a layer, all passes together: a guess, which arithmetic hides.
    """
    p, parts = _parameters(model), case.mesh[0] * case.mesh[1]
    width, length = model.num_heads * model.head_dim, layout.length
    bytes_each = 2 if model.param_dtype == "bfloat16" else 4
    weights = bytes_each * (model.num_layers * p["layer"] + p["head"])
    if case.program == "train":
        accumulate = config.progemu.stage2.accumulate
        tokens = parts * case.rows * accumulate * length
        layers = model.num_layers * (2 * p["layer"] + 2 * width * length)
        forward = layers + 2 * p["head"]
        done = 3 * forward + (layers if model.remat else 0)
        # A device reads the weights in each of three passes, and reads and writes its share of weights and moments.
        shards = case.mesh[1] * case.mesh[2]
        moved = 3 * weights / case.mesh[2] * accumulate + 8 * weights / shards
        moved += model.num_layers * case.rows * accumulate * length * model.hidden_size * 2 * 30 / case.mesh[2]
        return {"tokens": tokens, "flops": 3 * forward * tokens, "flops_done": done * tokens, "moved": moved}
    policy = config.sample.policy
    rows = parts * case.rows * (2 if policy.guided else 1)
    slots, steps = _prompt_slots(layout), layout.height * layout.width + policy.max_text
    tokens = rows * (slots + layout.image_tokens + policy.max_text)
    seen = (slots + layout.image_tokens + policy.max_text) / 2
    codes = 2 * model.hidden_size * config.tokenizer.model.codebook_size  # of the head, its visual rows alone
    flops = tokens * model.num_layers * (2 * p["layer"] + 4 * width * seen) + rows * steps * codes
    cache = model.num_layers * 2 * model.num_kv_heads * model.head_dim * bytes_each  # a token
    local = rows / parts
    layers = bytes_each * model.num_layers * p["layer"] + codes / 2 * bytes_each
    moved = steps * (layers + local * cache * (slots + layout.image_tokens / 2)) / case.mesh[2]
    return {"tokens": tokens, "flops": flops, "flops_done": flops, "moved": moved, "cases": parts * case.rows}


def _analytic(case: Case, config: Any) -> dict:
    """A GPU's row: memory and bytes sent by formula. Attention is taken as fused: its scores are not stored."""
    model, layout, _ = _parts(config, case.mesh[2])
    data, fsdp, tensor = case.mesh
    p = _parameters(model)
    each = 2 if model.param_dtype == "bfloat16" else 4
    total = each * (model.num_layers * p["layer"] + p["tables"])
    counted = counts(model, layout, case, config)
    if case.program == "train":
        train = config.progemu.stage2
        moments = 2 * (2 if train.moment_dtype == "bfloat16" or each == 2 else 4) / each
        tokens = case.rows * layout.length
        state = total * (1 + moments) / (fsdp * tensor)
        grads = total / (fsdp * tensor)
        whole = (
            2 * each * p["layer"] / tensor + 2 * each * p["head"] / tensor
        )  # gathered: two layers; head, its gradient
        saved = model.num_layers * tokens * model.hidden_size * 2  # inputs of the layers
        layer = tokens * (8 * model.hidden_size + 4 * model.intermediate_size / tensor) * 2
        logits = 1024 * (model.padded_vocab_size or model.vocab_size) / tensor * 4 * 2
        memory = {"state": state, "gradients": grads, "gathered": whole, "activations": saved + layer, "logits": logits}
        micro = train.accumulate
        sent = {
            "all-gather": micro * 2 * total / tensor * (fsdp - 1) / fsdp,
            "reduce-scatter": micro * total / tensor * (fsdp - 1) / fsdp,
            "all-reduce (data)": 2 * total / (fsdp * tensor) * (data - 1) / data,
            "all-reduce (tensor)": micro
            * model.num_layers
            * 6
            * tokens
            * model.hidden_size
            * 2
            * 2
            * (tensor - 1)
            / tensor,
        }
    else:
        local = case.rows * (2 if config.sample.policy.guided else 1)
        slots = _prompt_slots(layout) + layout.image_tokens + config.sample.policy.max_text
        cache = local * slots * model.num_layers * 2 * model.num_kv_heads * model.head_dim * each / tensor
        weights = each * (model.num_layers * p["layer"] / tensor + p["tables"])
        layer = local * _prompt_slots(layout) * (8 * model.hidden_size + 4 * model.intermediate_size / tensor) * 2
        memory = {"weights": weights, "cache": cache, "activations": layer}
        reduced = local * (slots) * model.hidden_size * 2 * 2 * model.num_layers
        sent = {"all-reduce (tensor)": 2 * reduced * (tensor - 1) / tensor}
    memory["total"] = sum(memory.values())
    return {
        **dataclasses.asdict(case), "kind": "analytic", "memory": memory,
        "sent": {name: value for name, value in sent.items() if value}, **counted,
    }  # fmt: skip


# --- what is printed ---


def roofline(row: dict, name: str) -> dict[str, float]:
    """Least seconds that arithmetic, memory and links each take on one device of a kind; their maximum bounds a step.

    What is sent counts at the fast links' speed while the mesh lies within them; the data axis of a mesh that does not
    goes over the network.
    """
    a, devices = ACCELERATORS[name], math.prod(row["mesh"])
    far = {kind: v for kind, v in row["sent"].items() if devices > a.near and kind == "all-reduce (data)"}
    near = sum(row["sent"].values()) - sum(far.values())
    if row["mesh"][1] * row["mesh"][2] > a.near:
        near, far = 0.0, row["sent"]
    times = {
        "arithmetic": row["flops_done"] / devices / a.flops,
        "memory": row["moved"] / a.bandwidth,
        "links": near / a.link + sum(far.values()) / a.far,
    }
    return times | {"step": max(times.values())}


def _line(row: dict) -> str:
    where = "x".join(map(str, row["mesh"]))
    if "failed" in row:
        return (
            f"{row['program']} on {math.prod(row['mesh'])} {row['target']} ({where}): does not compile: {row['failed']}"
        )
    sent = ", ".join(f"{kind} {value / GB:.2f}" for kind, value in sorted(row["sent"].items())) or "nothing"
    text = f"{row['program']} on {math.prod(row['mesh'])} {row['target']} ({where}), {row['kind']}: sends GB: {sent}"
    if "memory" in row:
        text += "; memory GB: " + ", ".join(f"{k} {v / GB:.2f}" for k, v in row["memory"].items())
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
        if name not in ACCELERATORS:
            how = "compiled for fake CPU devices"
            lines.append(f"| {row['program']} | {devices} | {mesh} | | | {flops:.0f} | {sent:.1f} | | | {how} |")
            continue
        a, memory, times = ACCELERATORS[name], row["memory"]["total"], roofline(row, name)
        speed = f"{row['tokens'] / times['step']:,.0f}"
        parts = ", ".join(f"{times[k]:.2f}" for k in ("arithmetic", "memory", "links"))
        how = f"compiled for {a.title}" if row["kind"] == "compiled" else "analytic"
        fits = "yes" if memory < 0.92 * a.memory else "no"
        lines.append(
            f"| {row['program']} | {devices} {a.title} | {mesh} | {memory / GB:.1f} | {fits} | {flops:.0f} | "
            f"{sent:.1f} | {parts} | {speed} | {how} |"
        )
    return "\n".join(lines)


def _child() -> None:
    from progemu_jax.config import Config, from_dict

    given = json.load(sys.stdin)
    case = Case(**{**given["case"], "mesh": tuple(given["case"]["mesh"])})
    print(json.dumps(_compile(case, from_dict(Config, given["config"]))))


if __name__ == "__main__":
    _child()
