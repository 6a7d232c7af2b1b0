"""Passes an image by ways of guessing that the library does not have, beside its own; prints JSON lines.

    .venv/bin/python benchmarks/drafts.py [--model=phantom] [--patients=24] [--tokens=16,32,74] [--ways=jacobi,...]

The first held-out phantom patients (those of `make try`), each its first pair, one batch, image alone. Two policies:
the model's own, and temperature 1 with top-k 2048 without guidance. Verification is that of `coupling="gumbel"`: a
guess counts if the seed's own noise draws it at its place, so that each way gives plain decoding's image
(`equal_images`, by `generate`; a draw very near a tie can differ) and only `passes`, the mean, change. Those of
`jacobi` are counted by the `library` too. `tokens` of a pass are given; the ways are

    prior      the prior's code at every place (`draft="prior"`)
    jacobi     the prior's code, then what the pass before has predicted there (`draft="jacobi"`)
    above      jacobi, but first the newest prediction one row above
    change     jacobi, but first the prediction above where that differs from the prior's code above
    block      jacobi, but a pass feeds a block that leans over the rows below (a row down costs 3 columns), not the
               next places in the row order
    tree_KxD   jacobi, and for the next D codes the K likeliest draws by the pass before, as a tree of K ** D paths, of
               which the first alone goes on: proactive drafting of SJD-PAC (arXiv 2603.18599), whose adaptive
               continuation is what jacobi does anyhow. All nodes count as tokens
    wide_KxD   the same, but every path goes on, and the tokens of one path count: no such tree can do better

A place has its noise for good, so its likeliest draws are those of scores and noise together. Paths are rows of the
batch here, which costs time and no pass.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import progemu_jax
from progemu_jax.gallery.cases import held_out
from progemu_jax.inference.pixels import gray
from progemu_jax.models import transformer
from progemu_jax.sampling.engine import Engine
from progemu_jax.sampling.generate import generate
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.sampling.speculation import gumbel

WAYS = "prior,jacobi,above,change,block,tree_4x1,tree_3x2,wide_4x1,wide_3x2"


@functools.partial(jax.jit, static_argnums=0)
def start(engine, params, prompts, keys):
    grid = (len(keys), engine.layout.height, engine.layout.width)
    state = engine.prefill(params, prompts, keys, jnp.zeros(grid, bool), jnp.zeros(grid, jnp.int32))
    return state, engine.draw_codes(params, state) + engine.grammar.visual_start


@functools.partial(jax.jit, static_argnums=(0, 5))
def look(engine, params, state, tokens, places, most):
    """A pass: the `most` likeliest draws [B, T, most] behind the places fed, the draw itself first; states, cache."""
    hidden, cache = engine.forward(params, state, tokens, places)
    keys = jnp.broadcast_to(state.keys[:, None], places.shape)
    noise = gumbel(
        jax.vmap(jax.vmap(jax.random.fold_in))(keys, engine.code_index(places + 1)), engine.grammar.codebook_size
    )
    likeliest = lax.top_k(engine.code_scores(params, state, hidden, places + 1) + noise, most)[1]
    return likeliest + engine.grammar.visual_start, hidden, cache


@functools.partial(jax.jit, static_argnums=0)
def take(engine, state, hidden, cache, count, rows):
    """The state after a pass of which `count` [B] tokens are right, each case's by the path that lies in `rows` [B]."""
    rows = jnp.concatenate([rows, rows + len(rows)]) if engine.policy.guided else rows
    cache = transformer.map_cache_rows(lambda x, axis: jnp.take(x, rows, axis), cache)
    return engine.commit(state, hidden[rows], cache, count)


def guesses(way, found, seen, prior, forced, row):
    """What each place is guessed to hold: what was found there, and by the way where nothing was seen yet."""
    guess = found.copy()
    for at in np.flatnonzero(forced < 0) if way in ("above", "change") else ():
        if at >= row:
            above, before = guess[:, at - row], prior[:, at - row]
            other = np.where(above == before, prior[:, at], above) if way == "change" else above
            guess[:, at] = np.where(seen[:, at], found[:, at], other)
    return guess


def block(place, tokens, row, size):
    """The places [B, tokens] that a pass of way "block" feeds, in the row order: `place` [B] and those ahead of it."""
    told = np.arange(1, size + tokens + 1)  # the places that they tell
    first = place[:, None] + 1
    cost = told % row - first % row + 3 * (told // row - first // row)
    cost = np.where(told < first, 2 * size**2, np.where(told < size, cost, size**2 + told))
    return np.sort(np.argsort(cost, axis=1, kind="stable")[:, :tokens], axis=1)


def decode(model, priors, texts, policy, way, tokens):
    """Passes [B] and codes [B, h, w] of one way, or None where its tree does not fit into so many tokens."""
    kind, _, shape = way.partition("_")
    most, depth = map(int, shape.split("x")) if shape else (1, 0)
    nodes = sum(most**level for level in range(1, depth + 1)) if kind == "tree" else depth
    length = tokens - (nodes - depth)  # of the first path
    if length < depth + 2:
        return None
    layout, grammar, size, row = model.layout, model.grammar, model.layout.image_tokens, model.layout.width + 1
    params, config = model.prepared()
    engine = Engine(config, layout, grammar, dataclasses.replace(policy, draft="jacobi", window=tokens))
    digits = np.asarray(list(itertools.product(range(most), repeat=depth)), int).reshape(most**depth, depth)
    paths, b, ahead = len(digits), np.arange(len(priors)), np.arange(length)
    pack = [x for x in priors for _ in range(paths)], [x for x in texts for _ in range(paths)]
    prompts = pad_prompts(model.vocabulary, layout, *pack, policy=policy)
    state, first = start(engine, params, prompts, jax.vmap(jax.random.key)(np.repeat(b.astype(np.uint32), paths)))

    forced = np.zeros(size + 2 * tokens + 1, int)  # 0 behind the image
    forced[: size - 2] = np.where(np.arange(size - 2) % row == layout.width, grammar.eol, -1)
    forced[size - 2 : size] = grammar.eof, grammar.eoi
    prior = np.tile(forced, (len(priors), 1))
    prior[:, forced < 0] = priors.reshape(len(priors), -1) + grammar.visual_start
    found, seen, choices = (
        prior.copy(),
        np.tile(forced >= 0, (len(priors), 1)),
        np.repeat(prior[..., None], most, axis=-1),
    )
    found[:, 0], seen[:, 0] = np.asarray(first)[::paths], True
    place, passes = np.zeros(len(priors), int), np.zeros(len(priors), int)

    while (place < size).any():
        places = block(place, length, row, size) if way == "block" else place[:, None] + ahead
        fed = np.take_along_axis(guesses(way, found, seen, prior, forced, row), places, axis=1)
        fed = np.repeat(fed[:, None], paths, axis=1)  # [B, paths, length]
        drawn_here = (forced[places] < 0) & (ahead > 0)
        level = np.cumsum(drawn_here, axis=1)
        for d in range(depth):
            c, j = np.nonzero(drawn_here & (level == d + 1))
            fed[c, :, j] = choices[c, places[c, j]][:, digits[:, d]]
        flat = np.minimum(np.repeat(places, paths, axis=0), size + tokens).astype(np.int32)
        answer, hidden, cache = look(engine, params, state, fed.reshape(-1, length).astype(np.int32), flat, most)
        must = forced[np.minimum(places + 1, len(forced) - 1)][:, None, :, None]
        answer = np.where(must >= 0, must, np.asarray(answer).reshape(len(b), paths, length, most))
        right = (answer[:, :, :-1, 0] == fed[:, :, 1:]) & (np.diff(places, axis=1) == 1)[:, None]
        if kind == "tree":  # the other paths end with it
            right[:, 1:] &= (level <= depth)[:, None, 1:]
        accepted = np.cumprod(right, axis=2).sum(axis=2)
        best = accepted.argmax(axis=1)
        accepted, drawn = accepted[b, best], answer[b, best]
        if kind == "tree":
            own = (ahead <= accepted[:, None]) | (level <= depth)
            drawn = np.where(own[..., None], drawn, answer[:, 0])
        count = np.minimum(accepted + 1, size - place)  # 0 for a finished image
        for c in np.flatnonzero(count):
            known = ahead <= (accepted[c] if way == "prior" else length)
            at = places[c][known] + 1
            found[c, at], choices[c, at], seen[c, at] = drawn[c, known, 0], drawn[c, known], True
        rows = np.repeat(b * paths + best, paths).astype(np.int32)
        state = take(engine, state, hidden, cache, np.repeat(count, paths).astype(np.int32), rows)
        passes, place = passes + (count > 0), place + count
    grid = found[:, : size - 2].reshape(len(b), layout.height, row)[..., :-1] - grammar.visual_start
    return passes, grid


def library(model, priors, texts, policy):
    """What `decode` gives, by `generate`."""
    prompts = pad_prompts(model.vocabulary, model.layout, list(priors), texts, policy=policy)
    keys = jax.vmap(jax.random.key)(np.arange(len(priors), dtype=np.uint32))
    out = generate(*model.prepared(), model.layout, model.grammar, policy, prompts, keys, text=False)
    return np.asarray(out.passes), np.asarray(out.codes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="phantom")
    parser.add_argument("--patients", type=int, default=24)
    parser.add_argument("--tokens", default="16,32,74")
    parser.add_argument("--ways", default=WAYS)
    args = parser.parse_args()

    model = progemu_jax.load(args.model)
    with tempfile.TemporaryDirectory() as work:
        cases = held_out(Path(work), args.patients, 128, 128)
    factor = model.tokenizer.config.factor
    side = (model.layout.height * factor, model.layout.width * factor)
    priors, texts = model.tokenize(np.stack([gray(case.prior, side) for case in cases])), [c.prompt for c in cases]
    wide = dataclasses.replace(model.policy, temperature=1.0, top_k=2048, guidance=1.0)
    for name, policy in (("own", model.policy), ("temperature 1", wide)):
        passes, plain = library(model, priors, texts, policy)
        print(json.dumps({"policy": name, "way": "plain", "passes": float(passes.mean())}), flush=True)
        for tokens, way in itertools.product(map(int, args.tokens.split(",")), args.ways.split(",")):
            found = decode(model, priors, texts, policy, way, tokens)
            if found is None:
                continue
            line = {"policy": name, "way": way, "tokens": tokens, "passes": round(float(found[0].mean()), 2)}
            if way == "jacobi":
                own = library(model, priors, texts, dataclasses.replace(policy, draft=way, window=tokens))[0]
                line["library"] = round(float(own.mean()), 2)
            line["equal_images"] = float((found[1] == plain).all(axis=(1, 2)).mean())
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
