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
from progemu_jax.plan import hlo
from progemu_jax.plan.counts import Case, _parts, _prompt_slots, counts
from progemu_jax.sampling.engine import Engine, Grammar
from progemu_jax.sampling.generate import mesh_program, unstacked
from progemu_jax.sampling.prompts import Prompts
from progemu_jax.tasks.progemu import ProgEmuTask


def _compile(case: Case, config: Any) -> dict:
    """Lowers and compiles one case; returns its row."""
    if case.target == "cpu":
        devices = jax.devices()
    else:
        name = f"{case.target}:{PLANNED[case.target].topologies[case.devices]}"
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


def _train_program(case, config, model, layout, task, mesh):
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

    keys = array(jax.random.key(0).dtype, cases)
    grid = (cases, layout.height, layout.width)
    drawn = (prompts, keys, array(jnp.bool_, *grid), array(jnp.int32, *grid))
    program = mesh_program(Engine(prepared, layout, grammar, policy), True, mesh)
    return program, (_placed(abstract, shardings), *drawn)


def _placed(abstract, shardings):
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def _child() -> None:
    given = json.load(sys.stdin)
    case = Case(**{**given["case"], "mesh": tuple(given["case"]["mesh"])})
    print(json.dumps(_compile(case, from_dict(Config, given["config"]))))
