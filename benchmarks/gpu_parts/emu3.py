"""Decoding at Emu3-8B's sizes with random bfloat16 weights made on the device: seconds an image and its text.

Each mode decodes the last rows of an image, by the decoder and the passes that a whole one takes, behind a cache that
counts as filled with the prompt and the rows before (zeros: a pass costs what it reads, whatever that is), and then all
words of a text. A whole image is timed where there is time for it, and else reckoned from the passes that were timed;
each row of output says how many those were. The prompt's own pass is timed once, and reckoned by rows for the others.
"""

import dataclasses
import functools
import time
from typing import Any, NamedTuple

import decode
import jax
import jax.numpy as jnp
import numpy as np

from gpu_parts import tools
from progemu_jax.models import linear, transformer
from progemu_jax.sampling import engine as engines
from progemu_jax.sampling import generate, speculation
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import Prompts, pad_prompts

SMALL = {
    "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "head_dim": 16, "intermediate_size": 48,
    "max_length": 256, "dtype": "float32", "param_dtype": "float32",
}  # fmt: skip
BATCH = 8  # cases at a time
SOME = ("plain", "jacobi", "diagonal")  # modes of the smallest size


class Mode(NamedTuple):
    """A way of decoding: cases at a time, the policy's settings, int8 weights."""

    name: str
    batch: int = 1
    policy: dict = {}  # noqa: RUF012
    int8: bool = False


MODES = (
    Mode("plain"),
    Mode("guidance 3", policy={"guidance": 3.0, "text_guidance": 3.0}),
    Mode(f"batch {BATCH}", BATCH),
    Mode("int8", int8=True),
    Mode("jacobi", policy={"draft": "jacobi"}),
    Mode("diagonal", policy={"mode": "diagonal"}),
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A mode with its parameters, prompts, and keys of its cases."""

    mode: Mode
    engine: engines.Engine
    prompts: Prompts
    params: Any
    keys: jax.Array

    @property
    def diagonal(self):
        return "mode" in self.mode.policy

    @functools.cached_property
    def shapes(self):
        """Of the state, without its keys."""
        return dataclasses.replace(jax.eval_shape(self.prefill, self.params, self.prompts), keys=None)

    def begin(self, place):
        """The state in which so many places of the image, and the prompt, went through the model."""
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.shapes)
        lengths = self.prompts.valid.sum(-1, dtype=np.int32)
        return dataclasses.replace(
            zeros,
            keys=self.keys,
            aligned=jnp.asarray(self.prompts.aligned.reshape(len(lengths), -1)),
            cache={**zeros.cache, "length": jnp.asarray(lengths + place)},
            text=jnp.full_like(zeros.text, -1),
            hidden=jax.random.normal(jax.random.key(1), zeros.hidden.shape, zeros.hidden.dtype),
            position=jnp.asarray(self.prompts.positions.max(-1) + 1 + place),
            place=jnp.full_like(zeros.place, place),
        )

    def image(self, params, state):
        if self.diagonal:
            from progemu_jax.sampling import diagonal

            return diagonal.decode_image(self.engine, params, state)
        if self.engine.policy.draft != "none":
            return speculation.decode_image(self.engine, params, state)
        return self.engine.decode_image(params, state)

    def text(self, params, state):
        return self.engine.decode_text(params, state)

    def prefill(self, params, prompts):
        grid = (self.mode.batch, self.engine.layout.height, self.engine.layout.width)
        return self.engine.prefill(params, prompts, self.keys, jnp.zeros(grid, bool), jnp.zeros(grid, jnp.int32))


def settings(run):
    """The modes that this version has, in order of worth, and the words of a text."""
    side, words = (3, 4) if run.small else (64, 100)
    case = dataclasses.replace(decode.STANDING, side=side, text=4 if run.small else 40)
    config = transformer.emu3_8b(scan_layers=False, remat=False, dropout=0.0)
    config = dataclasses.replace(config, **(SMALL if run.small else {}))
    case = dataclasses.replace(case, max_position_embeddings=config.max_length)
    vocabulary, layout, prior, prompt = decode.parts(case)
    grammar, prepared, found = engines.Grammar.of(vocabulary), {}, []
    for mode in sorted(MODES, key=lambda mode: not mode.int8):  # int8's first: it is made of a copy in bfloat16
        if run.few and mode.name not in SOME:
            continue
        if not set(mode.policy) <= {field.name for field in dataclasses.fields(Sampling)}:
            run.say(mode=mode.name, skipped=f"Sampling has no field {' and '.join(mode.policy)} in this version")
            continue
        policy = Sampling(max_text=words, min_text=words, **mode.policy)
        extra = {"diagonal": True} if "mode" in mode.policy else {}
        key = mode.int8, *extra
        if key not in prepared:
            prepared[key] = run.attempt(mode.name, lambda m=mode, e=extra: weights(m, config, e, grammar, prepared))
        if prepared[key]:
            params, model = prepared[key]
            prompts = pad_prompts(vocabulary, layout, [prior] * mode.batch, [prompt] * mode.batch, policy=policy)
            keys = jax.vmap(jax.random.key)(np.arange(mode.batch, dtype=np.uint32))
            found.append(Setting(mode, engines.Engine(model, layout, grammar, policy), prompts, params, keys))
    return sorted(found, key=lambda setting: MODES.index(setting.mode)), words


def weights(mode, config, extra, grammar, prepared):
    """(parameters as decoding reads them, config); what is the same as another mode's is not made again."""
    config = dataclasses.replace(config, **extra)
    shapes = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    base = prepared.get((False,))
    if extra and base:
        more = {name: shape for name, shape in shapes.items() if name not in base[0]}
        made = tools.on_device({name: value for name, value in more.items() if name != "lm_head"})
        return {**base[0], **made}, dataclasses.replace(base[1], **extra)
    params = tools.on_device(shapes)
    return generate.prepare(linear.quantize(params) if mode.int8 else params, config, grammar)


def emu3(run):
    began = time.time()
    found, words = settings(run)
    jax.block_until_ready([setting.params for setting in found])
    size = sum(x.nbytes for x in jax.tree.leaves(found[0].params))
    run.say(weights_gb=size / 1e9, made_in=time.time() - began, speed=tools.bandwidth(),
            prompt_slots=found[0].prompts.tokens.shape[1])  # fmt: skip

    def program(function, *arguments):
        start = time.time()
        compiled = jax.jit(function).lower(*arguments).compile()
        return compiled, time.time() - start

    jobs = {}
    for setting in found:  # images first: they are what takes the time
        start = jax.eval_shape(lambda s=setting: s.begin(0))
        jobs[setting.mode.name, "image"] = lambda s=setting, x=start: program(s.image, s.params, x)
    jobs["plain", "prompt"] = lambda s=found[0]: program(lambda *x: s.prefill(*x).hidden, s.params, s.prompts)
    for setting in found:
        if setting.engine.policy.draft == "none" and not setting.diagonal:
            start = jax.eval_shape(lambda s=setting: s.begin(0))
            jobs[setting.mode.name, "text"] = lambda s=setting, x=start: program(s.text, s.params, x)
    programs = tools.at_once(run, jobs)

    prompt = None
    if ("plain", "prompt") in programs:
        prefill = programs["plain", "prompt"][0]
        jax.block_until_ready(prefill(found[0].params, found[0].prompts))
        prompt = tools.seconds(lambda: prefill(found[0].params, found[0].prompts), 2)
    rows, plain_word = [], None
    for setting in found:
        if (setting.mode.name, "image") in programs:
            args = (setting, programs, prompt, plain_word, words, run.left() / (len(found) + 1 - len(rows)))
            row = run.attempt(setting.mode.name, lambda args=args: measure(*args))
            if row:
                plain_word = plain_word or row["seconds_a_word"]
                rows.append(row)
                run.say(**row)
    if rows and rows[0]["passes_measured"] < rows[0]["passes_of_an_image"]:
        left = run.left()
        if left > 1.5 * rows[0]["seconds_of_an_image"]:  # a whole image, to see that what was reckoned is so
            row = run.attempt("whole", lambda: measure(found[0], programs, prompt, plain_word, words, left, whole=True))
            if row:
                run.say(**row)


def measure(setting, programs, prompt, plain_word, words, budget, whole=False):
    """A row of a mode, in at most about `budget` seconds."""
    mode, layout, name = setting.mode, setting.engine.layout, setting.mode.name
    image, compiling = programs[name, "image"]
    height, end = layout.height, layout.image_tokens

    def passes(rows):
        """(seconds, passes) of the last rows of an image."""
        state = setting.begin((height - rows) * (layout.width + 1))
        jax.block_until_ready(state)
        start = time.perf_counter()
        out = jax.block_until_ready(image(setting.params, state))
        return time.perf_counter() - start, float(out.passes.mean())

    if setting.diagonal:
        rows = height  # few passes, and no part of an image is a part of the diagonals
    else:
        passes(1)
        taken, _ = passes(1)
        rows = height if whole else min(height, max(1, int(budget / 4 / taken)), height // 4 + 1)
    if rows == height and not whole:
        passes(rows)
    taken, count = passes(rows)
    of_image = count * height / rows
    row = {"mode": name + (", a whole image" if whole else ""), "batch": mode.batch, "compile_seconds": compiling}
    row |= {"passes_measured": count, "passes_of_an_image": of_image, "seconds_a_pass": taken / count}
    row["codes_a_pass"] = layout.width * rows / count
    word, text = plain_word, programs.get((name, "text"))
    if text:
        jax.block_until_ready(text[0](setting.params, setting.begin(end)))
        state = jax.block_until_ready(setting.begin(end))
        word = tools.seconds(lambda: text[0](setting.params, state).text, 1) / words
    rows_of_batch = len(setting.prompts.tokens)
    parts = {"prompt": prompt and prompt * rows_of_batch, "text": word and word * words}
    row |= {"seconds_a_word": word, "text_measured": bool(text), "seconds_of_a_prompt": parts["prompt"]}
    row["seconds_of_an_image"] = of_image * row["seconds_a_pass"]
    row["seconds"] = row["seconds_of_an_image"] + sum(part or 0 for part in parts.values())
    row["cases_a_minute"] = 60 * mode.batch / row["seconds"]
    return row | floor(setting, row, words)


def floor(setting, row, words):
    """The least seconds for what the passes of an image and its text must read, and the share that was reached."""
    model, mode, layout, prompts = (setting.engine.model, setting.mode, setting.engine.layout, setting.prompts)
    sizes = {
        "hidden_size": model.hidden_size, "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads, "num_hidden_layers": model.num_layers,
        "intermediate_size": model.intermediate_size,
    }  # fmt: skip
    number = jnp.dtype(model.dtype).itemsize
    lengths = [int(n) for n in prompts.valid.sum(-1)][:: mode.batch]
    _, per_pass, _, per_word = decode.least_bytes(
        sizes,
        layout.height,
        decode.CODES,
        decode.TEXT_IDS,
        lengths,
        words,
        1 if mode.int8 else number,
        number,
        mode.batch,
    )
    speed = tools.bandwidth()
    out = {"gigabytes_a_pass": per_pass / 1e9, "gigabytes_a_word": per_word / 1e9}
    if not speed:
        return out | {"floor_seconds": None, "share_of_floor": None}
    least = (row["passes_of_an_image"] * per_pass + words * per_word) / speed
    return out | {"floor_seconds": least, "share_of_floor": per_pass / speed / row["seconds_a_pass"]}
