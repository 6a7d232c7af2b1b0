"""Sampling against `transformers`' Emu3 with the reference's grammar callback, on the same weights; prints JSON lines.

    make bench-decode    # or: .venv-parity/bin/python benchmarks/decode.py [--rounds=2] [--only=WORD] [--worker=PYTHON]

The standing case: hidden 512, 8 layers, 8 heads, 4 KV heads, FFN 1408, vocabulary 184,622; 16 x 16 prior codes and 40
text tokens in, 16 x 16 codes and 40 text tokens out (314 tokens with EOL, EOF, EOI), top-k 2048, with and without
guidance 3.0. PyTorch writes the random weights, progemu_jax.convert reads them. Both sides run in turn in one run on
the same cores, each in float32 and bfloat16; ours also at batch 8. Compilation and a first short run are not counted;
the prefill is. The peer's callback gets its lists of allowed ids as ready tensors and ends its EOL rule with the image.

--worker: another Python (with another JAX) that ours runs in, as a child process that waits while the peer runs.
--plan: prints what one image and its text move at Emu3-8B's sizes, and the seconds on an H200, and ends.
--only: only setups whose name contains WORD (f32, bf16, int8; g1, g3; b1, b8).
"""

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import child

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a library that waits leaves the cores to the other
os.environ.setdefault("JAX_PLATFORMS", "cpu")

SIZES = {
    "vocab_size": 184_622,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "pad_token_id": 151_643,
    "bos_token_id": 151_849,
    "eos_token_id": 151_850,
}
SIDE, TEXT, TOP_K, CODES = 16, 40, 2048, 32_768
TOKENS = SIDE * (SIDE + 1) + 2 + TEXT
# (name, dtype, quantize, guidance, batch)
OURS = [
    (f"{short} g{guidance} b{batch}", dtype, quantize, float(guidance), batch)
    for short, dtype, quantize, guidance, batch in (
        ("f32", "float32", "", 1, 1),
        ("bf16", "bfloat16", "", 1, 1),
        ("bf16", "bfloat16", "", 3, 1),
        ("bf16", "bfloat16", "", 1, 8),
        ("f32", "float32", "", 3, 1),
        ("f32", "float32", "", 1, 8),
        ("int8", "bfloat16", "int8", 1, 1),
    )
]
PEER = [(f"{s} g{g} b1", d, float(g)) for s, d in (("bf16", "bfloat16"), ("f32", "float32")) for g in (1, 3)]


def parts():
    """Vocabulary (Emu3's ids, made-up words), layout, prior codes, prompt of TEXT tokens."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from emu3_reference import many_ranks

    from progemu_jax.text import sequence
    from progemu_jax.text.vocabulary import Vocabulary, visual_token

    names = ["<|image token|>", "<|image start|>", "<|image end|>"]
    words = Vocabulary(many_ranks(), [*names, *(visual_token(i) for i in range(CODES))])
    prompt = "x" * TEXT
    while len(words.encode(prompt)) != TEXT:
        prompt = prompt + "\n" if len(words.encode(prompt)) < TEXT else prompt[:-1]
    prior = np.random.default_rng(0).integers(0, CODES, (SIDE, SIDE))
    return words, sequence.Layout(SIDE, SIDE, SIZES["max_position_embeddings"]), prior, prompt


class Ours:
    """Our side: one call samples a batch and returns (seconds, tokens of the first case)."""

    def __init__(self, folder):
        import jax

        from progemu_jax.convert.emu3 import folder as emu3_folder

        self.version = jax.__version__
        part = next(iter(emu3_folder.open_folder(Path(folder)).parts.values()))
        self.params, self.config = part.params(), part.model
        self.vocabulary, self.layout, self.prior, self.prompt = parts()
        self.ready = {}

    def __call__(self, dtype, quantize, guidance, batch, greedy, seed):
        import jax
        import numpy as np

        from progemu_jax.models import linear
        from progemu_jax.sampling import engine, generate
        from progemu_jax.sampling.policy import Sampling
        from progemu_jax.sampling.prompts import pad_prompts
        from progemu_jax.text import sequence

        grammar = engine.Grammar.of(self.vocabulary)
        if (dtype, quantize) not in self.ready:
            config = dataclasses.replace(self.config, dtype=dtype, param_dtype=dtype)
            params = jax.tree.map(lambda x: x.astype(dtype), self.params)
            if quantize:
                params = linear.quantize(params)
            self.ready[dtype, quantize] = generate.prepare(params, config, grammar)
        params, config = self.ready[dtype, quantize]
        heat = 0.0 if greedy else 1.0
        policy = Sampling(
            temperature=heat, text_temperature=heat, top_k=TOP_K, text_top_k=TOP_K, guidance=guidance,
            text_guidance=guidance, max_text=TEXT, min_text=TEXT,
        )  # fmt: skip
        start = time.perf_counter()
        prompts = pad_prompts(self.vocabulary, self.layout, [self.prior] * batch, [self.prompt] * batch, policy=policy)
        keys = jax.vmap(jax.random.key)(np.arange(seed, seed + batch, dtype=np.uint32))
        out = jax.block_until_ready(generate.generate(params, config, self.layout, grammar, policy, prompts, keys))
        seconds = time.perf_counter() - start
        image = sequence.image_body(self.vocabulary, np.asarray(out.codes[0]))
        return seconds, [int(t) for t in (*image, *np.asarray(out.text[0]))], int(out.passes[0])


class Peer:
    """`transformers`: generate() with prefix_allowed_tokens_fn; guidance by its own processor (a second model call)."""

    def __init__(self, model):
        import torch

        from progemu_jax.text import sequence

        self.models = {"float32": model}
        words, layout, prior, prompt = parts()
        ids = [sequence.prompt_tokens(words, layout, p, prompt)["tokens"] for p in (prior, None)]
        self.prompt, self.null = (torch.from_numpy(x.astype("int64"))[None] for x in ids)
        self.visual = torch.arange(words.visual_start, words.visual_start + CODES)
        self.text = torch.arange(words.text_size)
        self.single = {name: torch.tensor([getattr(words, name)]) for name in ("eol", "eof", "eoi")}

    def allowed(self, _, tokens):
        place = len(tokens) - self.prompt.shape[1]
        size = SIDE * (SIDE + 1)
        if place < size:
            return self.single["eol"] if place % (SIDE + 1) == SIDE else self.visual
        return self.single[("eof", "eoi")[place - size]] if place < size + 2 else self.text

    def __call__(self, dtype, guidance, greedy, seed, count=TOKENS):
        import torch
        from transformers.generation.logits_process import (
            LogitsProcessorList,
            UnbatchedClassifierFreeGuidanceLogitsProcessor,
        )

        if dtype not in self.models:
            self.models[dtype] = copy_of(self.models["float32"], dtype)
        model = self.models[dtype]
        options = {"do_sample": False} if greedy else {"do_sample": True, "top_k": TOP_K, "temperature": 1.0}
        processors = LogitsProcessorList()
        if guidance != 1:
            processors.append(UnbatchedClassifierFreeGuidanceLogitsProcessor(guidance, model, self.null))
        torch.manual_seed(seed)
        start = time.perf_counter()
        out = model.generate(
            self.prompt,
            attention_mask=torch.ones_like(self.prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            prefix_allowed_tokens_fn=self.allowed,
            logits_processor=processors,
            use_cache=True,
            **options,
        )
        return time.perf_counter() - start, out[0, self.prompt.shape[1] :].tolist()


def copy_of(model, dtype):
    import copy

    import torch

    return copy.deepcopy(model).to(getattr(torch, dtype))


def least_bytes(sizes, side, codes, vocabulary, prompts, text, weight, cache, batch=1):
    """(image passes, bytes of each on average, text passes, bytes of each) that decoding a batch must at least move.

    Weights once a pass: all layers, and the visual or text rows of the head; the filled cache of every row once.
    prompts: tokens before the image of each row of a case; weight, cache: bytes of a number.
    """
    head = sizes["hidden_size"] // sizes["num_attention_heads"]
    kv = sizes["num_key_value_heads"] * head
    layer = sizes["hidden_size"] * (2 * sizes["hidden_size"] + 2 * kv + 3 * sizes["intermediate_size"])
    body = sizes["num_hidden_layers"] * layer
    token = 2 * kv * sizes["num_hidden_layers"] * cache
    image = side * (side + 1) + 2
    filled = batch * token * sum(n + image // 2 for n in prompts)
    later = batch * token * sum(n + image + text // 2 for n in prompts)
    per_code = weight * (body + codes * sizes["hidden_size"]) + filled
    per_word = weight * (body + vocabulary * sizes["hidden_size"]) + later
    return side * side, per_code, text, per_word


def bytes_per_token(name, guidance, batch):
    """Least bytes moved for a token of the standing case, forced ones counted as tokens (they need no pass)."""
    kind, prompt = name.split()[0], 1 + 2 * 7 + SIDE * (SIDE + 1) + 2 + TEXT
    weight = {"f32": 4, "bf16": 2, "int8": 1}[kind]
    rows = [prompt, 8] if guidance != 1 else [prompt]
    passes = least_bytes(SIZES, SIDE, CODES, 151_851, rows, TEXT, weight, 4 if kind == "f32" else 2, batch)
    return (passes[0] * passes[1] + passes[2] * passes[3]) / (TOKENS * batch)


def plan():
    """One image of 64 x 64 codes and 100 tokens of text at Emu3-8B's sizes, on an H200 (4.8 TB/s): on paper."""
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    prompt = 1 + 2 * 7 + 64 * 65 + 2 + 40
    for name, weight, rows, batch in (
        ("bfloat16", 2, [prompt], 1),
        ("bfloat16, guidance", 2, [prompt, 8], 1),
        ("bfloat16, batch 8", 2, [prompt], 8),
        ("int8 weights", 1, [prompt], 1),
    ):
        codes, per_code, words, per_word = least_bytes(sizes, 64, CODES, 151_851, rows, 100, weight, 2, batch)
        emit(plan=name, prompt_tokens=prompt, image_passes=codes, text_passes=words, gigabytes_a_code=per_code / 1e9,
             gigabytes_a_word=per_word / 1e9, terabytes=(codes * per_code + words * per_word) / 1e12,
             seconds_at_4800_gigabytes=(codes * per_code + words * per_word) / 4.8e12)  # fmt: skip


def bandwidth():
    """Bytes a second that both cores read from memory, best of five sums over 1 GiB."""
    import torch

    block, best = torch.ones(1 << 28), 0.0
    for _ in range(5):
        start = time.perf_counter()
        block.sum()
        best = max(best, block.numel() * 4 / (time.perf_counter() - start))
    return best


def emit(**row):
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="")
    parser.add_argument("--worker", default="")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        return plan()
    if args.serve:
        ours = Ours(args.serve)
        return child.serve(ours.version, ours)

    import numpy as np
    import torch
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = Emu3ForCausalLM(Emu3TextConfig(**SIZES, attention_dropout=0.0)).eval()
    model.generation_config.eos_token_id = None  # its length is given
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model.save_pretrained(folder)
        ours = child.Child(args.worker, __file__, "--serve", folder) if args.worker else Ours(folder)
        version = ours.hello if args.worker else ours.version
        peer, speed = Peer(model), bandwidth()
        chosen = [row for row in OURS if args.only in row[0]]
        emit(case=SIZES | {"side": SIDE, "text": TEXT, "top_k": TOP_K, "tokens": TOKENS}, jax=version,
             torch=torch.__version__, threads=args.threads, memory_bytes_per_second=speed)  # fmt: skip
        rows = {}
        for dtype in ("float32", "bfloat16"):  # peer's warm-up
            for guidance in (1.0, 3.0):
                peer(dtype, guidance, False, 0, 4)
        for index in range(args.rounds):
            pending = [
                (name, rest) for name, *rest in PEER if any(o[0].endswith(name.split()[1] + " b1") for o in chosen)
            ]
            for name, dtype, quantize, guidance, batch in chosen:
                arguments = (dtype, quantize, guidance, batch, False)
                if not index:
                    ours(*arguments, 7)  # compiles
                seconds, _, passes = ours(*arguments, 100 * index)
                rows.setdefault(("ours", name), []).append(seconds / batch)
                emit(side="ours", setup=name, round=index, seconds=seconds, tokens_per_second=TOKENS * batch / seconds,
                     cases_per_minute=60 * batch / seconds, passes=passes)  # fmt: skip
                if pending:
                    peer_name, (peer_dtype, peer_guidance) = pending.pop(0)
                    run_peer(peer, rows, index, peer_name, peer_dtype, peer_guidance)
            for peer_name, (peer_dtype, peer_guidance) in pending:
                run_peer(peer, rows, index, peer_name, peer_dtype, peer_guidance)
    medians = {key: float(np.median(values)) for key, values in rows.items()}
    for name, _, _, guidance, batch in chosen:
        moved = bytes_per_token(name, guidance, batch)
        rate = TOKENS / medians["ours", name]
        emit(setup=name, tokens_per_second=rate, megabytes_per_token=moved / 1e6, of_bandwidth=rate * moved / speed)
    for label, guidance, batch in (("batch 1", 1, 1), ("batch 1, guidance 3", 3, 1), ("batch 8, cases", 1, 8)):
        mine = {n: v for (side, n), v in medians.items() if side == "ours" and n.endswith(f" g{guidance} b{batch}")}
        exact = {n: v for n, v in mine.items() if not n.startswith("int8")}
        theirs = {n: v for (side, n), v in medians.items() if side == "peer" and f" g{guidance} " in n}
        if exact and theirs:
            best, other = min(exact, key=exact.get), min(theirs, key=theirs.get)
            more = {n: theirs[other] / v for n, v in mine.items() if n.startswith("int8")}
            emit(ratio=label, value=theirs[other] / exact[best], ours=best, peer=other,
                 peer_tokens_per_second=TOKENS / theirs[other], with_int8=next(iter(more.values()), None))  # fmt: skip
    with torch.inference_mode():
        check_greedy(ours, peer)


def check_greedy(ours, peer):
    """Prints how many greedy tokens of the standing case are the peer's, float32 on both sides."""
    _, wanted = peer("float32", 1.0, True, 0)
    _, got, _ = ours("float32", "", 1.0, 1, True, 0)
    emit(greedy_tokens_equal=sum(a == b for a, b in zip(got, wanted, strict=True)), of=TOKENS)


def run_peer(peer, rows, index, name, dtype, guidance):
    seconds, _ = peer(dtype, guidance, False, 100 * index)
    rows.setdefault(("peer", name), []).append(seconds)
    emit(side="peer", setup=name, round=index, seconds=seconds, tokens_per_second=TOKENS / seconds)


if __name__ == "__main__":
    main()
