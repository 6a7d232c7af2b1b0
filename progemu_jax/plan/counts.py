"""Parameters, FLOPs and bytes of a step, counted; and what an accelerator would take for them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from progemu_jax.config import Config
from progemu_jax.devices.accelerators import PLANNED
from progemu_jax.models import diagonal_head, nf4
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.tasks.progemu import ProgEmuConfig
from progemu_jax.text import vocabulary
from progemu_jax.text.sequence import Layout


@dataclass(frozen=True)
class Program:
    """One program on one mesh (data, fsdp, tensor) with `rows` sequences on each part of the batch."""

    program: str
    mesh: tuple[int, int, int]
    rows: int
    target: str  # a TPU of PLANNED, or "cpu"

    @property
    def devices(self) -> int:
        return math.prod(self.mesh)


def model_of(config: Config, tensor: int, sampled: bool = False) -> tuple[TransformerConfig, Layout, ProgEmuConfig]:
    """(transformer config, layout, task config); the vocabulary's size is taken as the config gives it.

    sampled: of the finished model, with the head of anti-diagonal decoding where that is trained at the end.
    """
    model, task = config.progemu.model, config.progemu.task
    size = model.vocab_size or vocabulary.load(config.vocabulary or None, config.tokenizer.model.codebook_size).size
    side = config.data.image_size // config.tokenizer.model.factor
    model = dataclasses.replace(model, vocab_size=size, max_length=task.length)
    if model.padded_vocab_size is None and size % tensor:
        model = dataclasses.replace(model, padded_vocab_size=-(-size // tensor) * tensor)
    if sampled and config.progemu.diagonal.head.steps:
        model = dataclasses.replace(model, diagonal=True)
    return model, task.layout(side, side), task


def diagonal_parameters(model: TransformerConfig) -> int:
    """Parameters of the head of anti-diagonal decoding that multiply, 0 without one."""
    m, f = model.hidden_size, diagonal_head.width(model)
    return (2 * 3 * m * f + f * m + 3 * m * m) * model.diagonal


def prompt_slots(layout: Layout) -> int:
    """Prompt tokens of a case: all films and 64 tokens of text and structure, up to a multiple of 32."""
    return -(-((1 + layout.older) * layout.image_tokens + 64) // 32) * 32


def parameters(model: TransformerConfig) -> dict[str, int]:
    """Parameters that multiply: in one layer, LoRA's in one, in the head; and of both vocabulary tables."""
    m, f = model.hidden_size, model.intermediate_size
    q, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    ends = {"q_proj": (m, q), "k_proj": (m, kv), "v_proj": (m, kv), "o_proj": (q, m)}
    ends |= {"gate_proj": (m, f), "up_proj": (m, f), "down_proj": (f, m)}
    table = m * (model.padded_vocab_size or model.vocab_size)
    return {
        "layer": sum(math.prod(sizes) for sizes in ends.values()),
        "lora": model.lora_rank * sum(sum(ends[name]) for name in model.lora_targets),
        "head": table,
        "tables": table * (1 if model.tie_embeddings else 2),
    }


def _bytes_each(model: TransformerConfig) -> tuple[int, float]:
    """Bytes of a parameter, and of one of a layer's projections as it is held."""
    each = 2 if model.param_dtype == "bfloat16" else 4
    four_bits = 1 / 2 + 1 / nf4.BLOCK + 8 / (nf4.BLOCK * nf4.GROUP)
    return each, four_bits if model.lora_base == "nf4" else each


# What the backward pass computes again, by the model's `remat_policy`.
_AGAIN = {"nothing": "the layers", "attention": "the layers but attention", "dots": "the layers but their products"}


def count(model: TransformerConfig, layout: Layout, program: Program, config: Config) -> dict:
    """FLOPs of the whole program: `flops` (the model's), `flops_done` (with recomputation); tokens; memory traffic.

    Forward: 2 a parameter and token, and 2 heads x head size a token and key it sees, twice (scores, values). Backward
    is twice that, but once for weights that LoRA leaves as they are; rematerialisation runs the layers' forward pass
    once more. Memory traffic of activations is taken as 30 reads or writes of [tokens, hidden] a layer, all passes
    together: a guess, which arithmetic hides.
    """
    p, parts = parameters(model), program.mesh[0] * program.mesh[1]
    width, length = model.num_heads * model.head_dim, layout.length
    bytes_each, held = _bytes_each(model)
    weights = model.num_layers * p["layer"] * held + p["head"] * bytes_each
    if program.program == "train":
        accumulate = config.progemu.stage2.accumulate
        tokens = parts * program.rows * accumulate * length
        layers = model.num_layers * (2 * (p["layer"] + p["lora"]) + 2 * width * length)
        model_flops = 3 * (layers + 2 * p["head"])
        if model.lora_rank:
            model_flops -= 2 * (model.num_layers * p["layer"] + p["head"])
        # A device reads the weights in each of three passes, and reads and writes its share of weights and moments;
        # those in 4 bits it writes in bfloat16, and reads these.
        shards = program.mesh[1] * program.mesh[2]
        learnt = 4 * model.num_layers * p["lora"] if model.lora_rank else weights
        unpacked = 2 * 2 * model.num_layers * p["layer"] if model.lora_base == "nf4" else 0
        moved = 3 * (weights + unpacked) / program.mesh[2] * accumulate + 8 * learnt / shards
        moved += model.num_layers * program.rows * accumulate * length * model.hidden_size * 2 * 30 / program.mesh[2]
        done = model_flops + (layers if model.remat else 0)
        again = _AGAIN[model.remat_policy] if model.remat else "nothing"
        counted = {"tokens": tokens, "flops": model_flops * tokens, "flops_done": done * tokens, "moved": moved}
        return counted | {"recomputed": again, "offloaded": "nothing"}
    policy = config.sample.policy
    rows = parts * program.rows * (2 if policy.guided else 1)
    slots, size, own = prompt_slots(layout), layout.height * layout.width, diagonal_parameters(model) * policy.diagonal
    passes = layout.height + layout.width - 1 if policy.diagonal else size
    steps = passes + policy.max_text
    tokens = rows * (slots + layout.image_tokens + policy.max_text)
    seen = (slots + layout.image_tokens + policy.max_text) / 2
    codes = 2 * model.hidden_size * config.tokenizer.model.codebook_size  # of the head, its visual rows alone
    flops = tokens * model.num_layers * (2 * p["layer"] + 4 * width * seen) + rows * (size + policy.max_text) * codes
    flops += rows * size * 2 * own
    cache = model.num_layers * 2 * model.num_kv_heads * model.head_dim * bytes_each  # a token
    local = rows / parts
    layers = bytes_each * model.num_layers * p["layer"] + codes / 2 * bytes_each
    moved = steps * (layers + local * cache * (slots + layout.image_tokens / 2)) / program.mesh[2]
    moved += passes * bytes_each * own / program.mesh[2]
    return {"tokens": tokens, "flops": flops, "flops_done": flops, "moved": moved, "cases": parts * program.rows}


def row_by_formula(program: Program, config: Config) -> dict:
    """A GPU's row: memory and bytes sent by formula. Attention is taken as fused: its scores are not stored."""
    model, layout, _ = model_of(config, program.mesh[2], program.program == "sample")
    data, fsdp, tensor = program.mesh
    p = parameters(model)
    each, held = _bytes_each(model)
    base = model.num_layers * p["layer"] * held + p["tables"] * each
    counted = count(model, layout, program, config)
    if program.program == "train":
        train, task = config.progemu.stage2, config.progemu.task
        tokens = program.rows * layout.length
        learnt, wide = (4 * model.num_layers * p["lora"], 4) if model.lora_rank else (base, each)
        moments = 2 * (2 if train.moment_dtype == "bfloat16" or wide == 2 else 4) / wide
        memory = {
            "state": ((base if model.lora_rank else 0) + learnt * (1 + moments)) / (fsdp * tensor),
            "gradients": learnt * (2 if train.accumulate > 1 else 1) / (fsdp * tensor),
            **_weights_at_hand(model, program, p, each),
            "activations": _activations(model, tokens, tensor),
            "logits": program.rows
            * task.loss_chunk
            * ((model.padded_vocab_size or model.vocab_size) / tensor * 2 + 2**16),
        }
        total = learnt if model.lora_rank else base
        micro = train.accumulate
        sent = {
            "all-gather": micro * 2 * base / tensor * (fsdp - 1) / fsdp,
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
        local = program.rows * (2 if config.sample.policy.guided else 1)
        slots = prompt_slots(layout) + layout.image_tokens + config.sample.policy.max_text
        cache = local * slots * model.num_layers * 2 * model.num_kv_heads * model.head_dim * each / tensor
        weights = each * (model.num_layers * p["layer"] / tensor + p["tables"])  # of the merged model
        weights += each * diagonal_parameters(model) / tensor
        layer = local * prompt_slots(layout) * (8 * model.hidden_size + 4 * model.intermediate_size / tensor) * 2
        memory = {"weights": weights, "cache": cache, "activations": layer}
        reduced = local * (slots) * model.hidden_size * 2 * 2 * model.num_layers
        sent = {"all-reduce (tensor)": 2 * reduced * (tensor - 1) / tensor}
    memory["total"] = sum(memory.values())
    return {
        **dataclasses.asdict(program), "kind": "analytic", "memory": memory,
        "sent": {name: value for name, value in sent.items() if value}, **counted,
    }  # fmt: skip


def _weights_at_hand(model: TransformerConfig, program: Program, p: dict[str, int], each: int) -> dict[str, float]:
    """Bytes of weights beside the state: what is gathered, two layers and the head; unpacked, one layer; gradients."""
    _, fsdp, tensor = program.mesh
    if model.lora_rank:
        found = {"unpacked": 2 * p["layer"] / tensor} if model.lora_base == "nf4" else {}
        return found | ({"gathered": (2 * p["layer"] + p["head"]) * each / tensor} if fsdp > 1 else {})
    return {"gathered": 2 * each * (p["layer"] + p["head"]) / tensor}  # of the head, its gradient, too


def _activations(model: TransformerConfig, tokens: int, tensor: int) -> float:
    """Bytes: what the forward pass leaves for the backward one, the widest moment of one layer, states and slopes."""
    m, q, kv = model.hidden_size, model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    saved = {"nothing": 0, "attention": q / tensor, "dots": (q + 2 * kv + 2 * model.intermediate_size) / tensor + 2 * m}
    layers = model.num_layers * tokens * (m + saved[model.remat_policy]) * 2
    return layers + tokens * (8 * m + 4 * model.intermediate_size / tensor) * 2 + 3 * tokens * m * 2


def roofline(row: dict, name: str) -> dict[str, float]:
    """Least seconds that arithmetic, memory and links each take on one device of a kind; their maximum bounds a step.

    What is sent counts at the fast links' speed while the mesh lies within them; the data axis of a mesh that does not
    goes over the network.
    """
    a, devices = PLANNED[name], math.prod(row["mesh"])
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
