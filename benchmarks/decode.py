"""Sampling against `transformers`' Emu3 with the reference's grammar callback, on the same weights; prints JSON lines.

    make bench-decode    # or: .venv-parity/bin/python benchmarks/decode.py [--rounds=2] [--only=WORD] [--worker=PYTHON]

The standing case: hidden 512, 8 layers, 8 heads, 4 KV heads, FFN 1408, vocabulary 184,622; 16 x 16 prior codes and 40
text tokens in, 16 x 16 codes and 40 text tokens out (314 tokens with EOL, EOF, EOI), top-k 2048, with and without
guidance 3.0; and, with a random second head, a diagonal of codes a pass (`mode="diagonal"`): the whole case, and the
image alone beside the peer's time for the image. PyTorch writes the random weights, progemu_jax.convert reads them.
Both sides run in turn in one run on the same cores, each in float32 and bfloat16; ours also at batch 8. Compilation and
a first short run are not counted; the prefill is. The peer's callback gets its lists of allowed ids as ready tensors
and ends its EOL rule with the image.

--worker: another Python (with another JAX) that ours runs in, as a child process that waits while the peer runs.
--plan: prints what one image and its text move at Emu3-8B's sizes, and the seconds on an H200, and ends.
--only: only setups whose name contains WORD (f32, bf16, int8; g1, g3; b1, b8; rows, diagonal, image).
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import child

CODES, TEXT_IDS = 32_768, 151_851  # rows of the head for codes, and for words and stops


@dataclasses.dataclass(frozen=True)
class Case:
    """What is sampled: sizes of the model (transformers' names), codes a side, text tokens in and as many out."""

    hidden_size: int = 512
    intermediate_size: int = 1408
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    max_position_embeddings: int = 1024
    side: int = 16
    text: int = 40
    top_k: int = 2048

    @property
    def sizes(self):
        """Of `Emu3TextConfig`."""
        own = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("side", "text", "top_k")}
        return own | {"vocab_size": 184_622, "pad_token_id": 151_643, "bos_token_id": 151_849, "eos_token_id": 151_850}

    @property
    def tokens(self):
        """Of the result, with EOL, EOF and EOI."""
        return self.side * (self.side + 1) + 2 + self.text


STANDING = Case()
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
MODES = ("rows", "diagonal", "diagonal image")  # what follows in a setup's name; image: without text
OURS = [(f"{name} {mode}", *rest) for mode in MODES for name, *rest in OURS if mode == "rows" or rest[1] == ""]
PEER = [(f"{s} g{g} b1", d, float(g)) for s, d in (("bf16", "bfloat16"), ("f32", "float32")) for g in (1, 3)]


def parts(case=STANDING):
    """Vocabulary (Emu3's ids, made-up words), layout, prior codes, prompt of as many tokens as the case says."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from support.emu3_reference import many_ranks

    from progemu_jax.text import sequence
    from progemu_jax.text.vocabulary import Vocabulary, visual_token

    names = ["<|image token|>", "<|image start|>", "<|image end|>"]
    words = Vocabulary(many_ranks(), [*names, *(visual_token(i) for i in range(CODES))])
    prompt = "x" * case.text
    while len(words.encode(prompt)) != case.text:
        prompt = prompt + "\n" if len(words.encode(prompt)) < case.text else prompt[:-1]
    prior = np.random.default_rng(0).integers(0, CODES, (case.side, case.side))
    return words, sequence.Layout(case.side, case.side, case.max_position_embeddings), prior, prompt


class Ours:
    """Our side: one call samples a batch and returns (seconds, tokens of the first case)."""

    def __init__(self, folder, case=STANDING):
        import jax

        from progemu_jax.convert.emu3 import folder as emu3_folder

        self.version = jax.__version__
        part = next(iter(emu3_folder.open_folder(Path(folder)).parts.values()))
        self.params, self.config = part.params(), part.model
        self.case = case
        self.vocabulary, self.layout, self.prior, self.prompt = parts(case)
        self.ready = {}

    def __call__(self, dtype, quantize, guidance, batch, greedy, seed, mode="rows", with_text=True):
        import jax
        import numpy as np

        from progemu_jax.models import diagonal_head, linear
        from progemu_jax.sampling import engine, generate
        from progemu_jax.sampling.policy import Sampling
        from progemu_jax.sampling.prompts import pad_prompts
        from progemu_jax.text import sequence

        grammar = engine.Grammar.of(self.vocabulary)
        if (dtype, quantize) not in self.ready:
            config = dataclasses.replace(self.config, dtype=dtype, param_dtype=dtype, diagonal=True)
            params = jax.tree.map(lambda x: x.astype(dtype), self.params)
            params = {**params, diagonal_head.NAME: diagonal_head.init_params(config, jax.random.key(0))}
            if quantize:
                params = linear.quantize(params)
            params, config = generate.prepare(params, config, grammar)
            self.ready[dtype, quantize] = jax.device_put(params), config
        params, config = self.ready[dtype, quantize]
        heat, top_k, text = 0.0 if greedy else 1.0, self.case.top_k, self.case.text
        policy = Sampling(
            temperature=heat, text_temperature=heat, top_k=top_k, text_top_k=top_k, guidance=guidance,
            text_guidance=guidance, max_text=text, min_text=text, mode=mode,
        )  # fmt: skip
        start = time.perf_counter()
        prompts = pad_prompts(self.vocabulary, self.layout, [self.prior] * batch, [self.prompt] * batch, policy=policy)
        keys = jax.vmap(jax.random.key)(np.arange(seed, seed + batch, dtype=np.uint32))
        exact = dtype == "float32" and jax.default_backend() == "gpu"  # by itself JAX takes TF32, PyTorch does not
        with jax.default_matmul_precision("highest" if exact else None):
            out = generate.generate(params, config, self.layout, grammar, policy, prompts, keys, text=with_text)
        out = jax.block_until_ready(out)
        seconds = time.perf_counter() - start
        image = sequence.image_body(self.vocabulary, np.asarray(out.codes[0]))
        return seconds, [int(t) for t in (*image, *np.asarray(out.text[0]))], int(out.passes[0])


class Peer:
    """`transformers`: generate() with prefix_allowed_tokens_fn; guidance by its own processor (a second model call)."""

    def __init__(self, model, case=STANDING, device="cpu"):
        import torch

        from progemu_jax.text import sequence

        self.models, self.case = {"float32": model.to(device)}, case
        words, layout, prior, prompt = parts(case)
        ids = [sequence.prompt_tokens(words, layout, p, prompt)["tokens"] for p in (prior, None)]
        self.prompt, self.null = (torch.from_numpy(x.astype("int64"))[None].to(device) for x in ids)
        self.visual = torch.arange(words.visual_start, words.visual_start + CODES, device=device)
        self.text = torch.arange(words.text_size, device=device)
        self.image_done = 0.0  # when the last pass of an image had ended
        self.single = {n: torch.tensor([getattr(words, n)], device=device) for n in ("eol", "eof", "eoi")}

    def allowed(self, _, tokens):
        place = len(tokens) - self.prompt.shape[1]
        side = self.case.side
        size = side * (side + 1)
        if place == size + 2:
            self.image_done = time.perf_counter()
        if place < size:
            return self.single["eol"] if place % (side + 1) == side else self.visual
        return self.single[("eof", "eoi")[place - size]] if place < size + 2 else self.text

    def __call__(self, dtype, guidance, greedy, seed, count=None):
        import torch
        from transformers.generation.logits_process import (
            LogitsProcessorList,
            UnbatchedClassifierFreeGuidanceLogitsProcessor,
        )

        if dtype not in self.models:
            self.models[dtype] = copy_of(self.models["float32"], dtype)
        model = self.models[dtype]
        count = count or self.case.tokens
        options = {"do_sample": False} if greedy else {"do_sample": True, "top_k": self.case.top_k, "temperature": 1.0}
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
        tokens = out[0, self.prompt.shape[1] :].tolist()  # waits for a GPU
        return time.perf_counter() - start, tokens, self.image_done - start


def how(name):
    """mode and with_text of `Ours`, by a setup's name."""
    return ("diagonal" if "diagonal" in name else "rows"), not name.endswith("image")


def tokens_of(case, name):
    """Tokens that a setup makes a case."""
    return case.tokens - case.text * name.endswith("image")


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


def bytes_per_token(case, name, guidance, batch):
    """Least bytes moved for a token of a case, forced ones counted as tokens (they need no pass)."""
    kind, side = name.split()[0], case.side
    prompt = 1 + 2 * 7 + side * (side + 1) + 2 + case.text
    weight, cache = {"f32": 4, "bf16": 2, "int8": 1}[kind], 4 if kind == "f32" else 2
    rows = [prompt, 8] if guidance != 1 else [prompt]
    passes = least_bytes(case.sizes, side, CODES, TEXT_IDS, rows, case.text, weight, cache, batch)
    return (passes[0] * passes[1] + passes[2] * passes[3]) / (case.tokens * batch)


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
        codes, per_code, words, per_word = least_bytes(sizes, 64, CODES, TEXT_IDS, rows, 100, weight, 2, batch)
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
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a library that waits leaves the cores to the other
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if args.plan:
        return plan()
    if args.serve:
        ours = Ours(args.serve)
        return child.serve(ours.version, ours)

    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = peer_model(folder)
        ours = child.Child(args.worker, __file__, "--serve", folder) if args.worker else Ours(folder)
        version = ours.hello if args.worker else ours.version
        peer, speed = Peer(model), bandwidth()
        emit(case=dataclasses.asdict(STANDING) | {"tokens": STANDING.tokens}, jax=version,
             torch=torch.__version__, threads=args.threads, memory_bytes_per_second=speed)  # fmt: skip
        comparison = Comparison(STANDING, ours, peer, [row for row in OURS if args.only in row[0]], speed)
        comparison.warm_peer()
        for index in range(args.rounds):
            comparison.round(index)
        comparison.summary()
        comparison.check_greedy()


def peer_model(folder, case=STANDING):
    """`transformers`' Emu3 with random weights, which are also written to a folder."""
    import torch
    from transformers import Emu3ForCausalLM, Emu3TextConfig

    torch.manual_seed(0)
    model = Emu3ForCausalLM(Emu3TextConfig(**case.sizes, attention_dropout=0.0)).eval()
    model.generation_config.eos_token_id = None  # its length is given
    model.save_pretrained(folder)
    return model


class Comparison:
    """Both sides in turn; `rows` has the seconds of every run, of a whole case.

    chosen: rows of OURS. speed: bytes a second that the device reads. say: called with the fields of a row of output.
    """

    def __init__(self, case, ours, peer, chosen, speed, say=emit):
        self.case, self.ours, self.peer, self.chosen, self.speed, self.say = case, ours, peer, chosen, speed, say
        self.rows, self.warm = {}, False

    def warm_peer(self):
        for dtype in ("float32", "bfloat16"):
            for guidance in (1.0, 3.0):
                self.peer(dtype, guidance, False, 0, 4)

    def warm_ours(self, setup):
        """Compiles a row of OURS, if it is not yet."""
        name, dtype, quantize, guidance, batch = setup
        self.ours(dtype, quantize, guidance, batch, False, 7, *how(name))

    def round(self, index):
        """Every setup once: one of ours, one of the peer's, ..."""
        ends = {row[0].split()[1] for row in self.chosen}
        pending = [row for row in PEER if row[0].split()[1] in ends]
        for setup in self.chosen:
            name, dtype, quantize, guidance, batch = setup
            if not self.warm:
                self.warm_ours(setup)
            seconds, _, passes = self.ours(dtype, quantize, guidance, batch, False, 100 * index, *how(name))
            self.rows.setdefault(("ours", name), []).append(seconds / batch)
            self.say(side="ours", setup=name, round=index, seconds=seconds, passes=passes,
                     tokens_per_second=tokens_of(self.case, name) * batch / seconds,
                     cases_per_minute=60 * batch / seconds)  # fmt: skip
            if pending:
                self._peer_round(index, *pending.pop(0))
        for row in pending:
            self._peer_round(index, *row)
        self.warm = True

    def _peer_round(self, index, name, dtype, guidance):
        seconds, _, image = self.peer(dtype, guidance, False, 100 * index)
        self.rows.setdefault(("peer", name), []).append(seconds)
        self.rows.setdefault(("peer", f"{name} image"), []).append(image)
        self.say(side="peer", setup=name, round=index, seconds=seconds, seconds_of_image=image,
                 tokens_per_second=self.case.tokens / seconds)  # fmt: skip

    def summary(self):
        """Shares of the memory's speed, and ratios of the best dtype of each side, by the medians so far."""
        medians = {key: statistics.median(values) for key, values in self.rows.items()}
        for name, _, _, guidance, batch in self.chosen:
            rate = tokens_of(self.case, name) / medians["ours", name]
            if name.endswith(" rows"):
                moved = bytes_per_token(self.case, name, guidance, batch)
                self.say(setup=name, tokens_per_second=rate, megabytes_per_token=moved / 1e6,
                         of_bandwidth=rate * moved / self.speed)  # fmt: skip
        ends = (("batch 1", 1, 1), ("batch 1, guidance 3", 3, 1), ("batch 8, cases", 1, 8))
        for mode in MODES:
            for label, guidance, batch in ends:
                end = f" g{guidance} b{batch} {mode}"
                mine = {n: v for (side, n), v in medians.items() if side == "ours" and n.endswith(end)}
                exact = {n: v for n, v in mine.items() if not n.startswith("int8")}
                image = mode.endswith("image")
                theirs = {
                    n: v for (side, n), v in medians.items()
                    if side == "peer" and f" g{guidance} " in n and n.endswith("image") == image
                }  # fmt: skip
                if exact and theirs:
                    best, other = min(exact, key=exact.get), min(theirs, key=theirs.get)
                    more = {n: theirs[other] / v for n, v in mine.items() if n.startswith("int8")}
                    self.say(ratio=f"{label}, {mode}", value=theirs[other] / exact[best], ours=best, peer=other,
                             peer_tokens_per_second=tokens_of(self.case, other) / theirs[other],
                             with_int8=next(iter(more.values()), None))  # fmt: skip

    def check_greedy(self):
        """Says how many greedy tokens are the peer's, float32 on both sides."""
        _, wanted, _ = self.peer("float32", 1.0, True, 0)
        _, got, _ = self.ours("float32", "", 1.0, 1, True, 0)
        same = sum(a == b for a, b in zip(got, wanted, strict=True))
        self.say(greedy_tokens_equal=same, of=self.case.tokens)


if __name__ == "__main__":
    main()
