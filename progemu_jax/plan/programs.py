"""Compiles one program of a plan in a process of its own: `python -m progemu_jax.plan.programs`."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from progemu_jax.config import Config
from progemu_jax.devices import sharding
from progemu_jax.devices.accelerators import PLANNED
from progemu_jax.files.settings import from_dict
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.plan import hlo
from progemu_jax.plan.counts import Program, count, model_of, prompt_slots
from progemu_jax.sampling.engine import Engine, Grammar
from progemu_jax.sampling.generate import mesh_program, unstacked
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.tasks import lora
from progemu_jax.tasks.progemu import ProgEmuConfig, ProgEmuTask
from progemu_jax.text.sequence import Layout


def compiled_row(program: Program, config: Config) -> dict:
    """Lowers and compiles one program; returns its row of the plan."""
    if program.target == "cpu":
        devices = jax.devices()
    else:
        name = f"{program.target}:{PLANNED[program.target].topologies[program.devices]}"
        one = {"chips_per_host_bounds": (1, 1, 1)} if program.devices == 1 else {}
        devices = topologies.get_topology_desc(name, platform="tpu", **one).devices
    mesh = Mesh(np.asarray(devices).reshape(program.mesh), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    model, layout, task = model_of(config, program.mesh[2], program.program == "sample")
    build = {"train": _training_step, "sample": _sampler}[program.program]
    started = time.monotonic()
    function, arguments = build(program, config, model, layout, task, mesh)
    with jax.set_mesh(mesh):
        lowered = function.lower(*arguments)
    compiled = lowered.compile()
    seconds = time.monotonic() - started
    memory = compiled.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "alias", "temp")}
    row = {
        **dataclasses.asdict(program),
        "kind": "compiled",
        "seconds_to_compile": round(seconds, 1),
        "sent": hlo.collectives(compiled.as_text(), program.devices),
        **count(model, layout, program, config),
    }
    if program.target != "cpu":
        row["memory"] = sizes | {"total": sizes["argument"] + sizes["output"] - sizes["alias"] + sizes["temp"]}
    return row


def _training_step(
    program: Program, config: Config, model: TransformerConfig, layout: Layout, task: ProgEmuConfig, mesh: Mesh
) -> tuple[Any, tuple]:
    """The jitted step, and its arguments as shapes with shardings."""
    train = config.progemu.stage2
    rows = program.mesh[0] * program.mesh[1] * program.rows * train.accumulate
    task = ProgEmuTask(model, dataclasses.replace(task, soften=0.0), dataclasses.replace(train, batch_size=rows))
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    shardings = task.state_shardings(mesh, abstract)
    state = _placed(abstract, shardings)
    kinds = {"tokens": "int32", "positions": "int32", "kinds": "int32", "aligned": "int32", "weights": "float32"}
    where = sharding.batch_sharding(mesh)
    batch = {name: jax.ShapeDtypeStruct((rows, layout.length), dtype, sharding=where) for name, dtype in kinds.items()}

    def step(state: dict, batch: dict, seed: jax.Array) -> tuple[dict, dict]:
        return task.train_step(state, batch, jax.random.key(seed))

    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=sharding.replicated(mesh))
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)), (state, batch, seed)


def _sampler(
    program: Program, config: Config, model: TransformerConfig, layout: Layout, task: ProgEmuConfig, mesh: Mesh
) -> tuple[Any, tuple]:
    """The jitted sampler, and its arguments as shapes with shardings."""
    del task
    codebook, policy = config.tokenizer.model.codebook_size, config.sample.policy
    start = model.vocab_size - codebook
    grammar = Grammar(*range(4), text_size=start - 8, visual_start=start, codebook_size=codebook, stops=(start - 1,))
    model = lora.plain(model)
    prepared = dataclasses.replace(model, scan_layers=False)

    def init(key: jax.Array) -> Any:
        return unstacked(transformer.init_params(model, key), model, grammar)[0]

    abstract = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.param_shardings(abstract, transformer.LOGICAL_AXES, mesh, sharding.SAMPLING_RULES)
    cases = program.mesh[0] * program.mesh[1] * program.rows
    rows, slots = cases * (2 if policy.guided else 1), prompt_slots(layout)
    where = sharding.batch_sharding(mesh)

    def array(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    prompts = Prompts(
        array(jnp.int32, rows, slots),
        array(jnp.int32, rows, slots),
        array(jnp.bool_, rows, slots),
        array(jnp.int32, rows, layout.height, layout.width + 1),
        array(jnp.int32, rows, slots) if layout.older else None,
    )

    keys = array(jax.random.key(0).dtype, cases)
    grid = (cases, layout.height, layout.width)
    drawn = (prompts, keys, array(jnp.bool_, *grid), array(jnp.int32, *grid))
    sampler = mesh_program(Engine(prepared, layout, grammar, policy), True, mesh)
    return sampler, (_placed(abstract, shardings), *drawn)


def _placed(abstract: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def main() -> None:
    """One JSON object on stdin, {"program", "config"}; the row of the plan on the last line of stdout."""
    given = json.load(sys.stdin)
    program = Program(**{**given["program"], "mesh": tuple(given["program"]["mesh"])})
    print(json.dumps(compiled_row(program, from_dict(Config, given["config"]))))


if __name__ == "__main__":
    main()
