"""Our models against stored outputs of the PyTorch code (`emu3_reference.py` makes both sides' weights)."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.emu3_reference import (
    BROKEN,
    CODES,
    GRID,
    LM,
    OUTPUTS,
    PROCESSOR,
    PROMPT,
    SIZES,
    TEXT_TOKENS,
    TEXTS,
    many_ranks,
    pictures,
    prompt_of,
    some_codes,
    some_tokens,
    weight,
)

import progemu_jax
from progemu_jax.convert.emu3 import image_processor
from progemu_jax.inference import pixels
from progemu_jax.models import transformer
from progemu_jax.sampling import generate
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.text import sequence
from progemu_jax.text.vocabulary import TEXT_FILE, VISION_FILE, load, write_ranks, write_vision_tokens

PARTS = {"transformers": "transformers", "language_model": "original_lm", "tokenizer": "original_vq"}


@pytest.fixture(scope="module")
def outputs():
    with np.load(OUTPUTS) as file:
        values = dict(file)
    return values | json.loads(zlib.decompress(values["record"].tobytes()))


@pytest.fixture(scope="module")
def folders(outputs, tmp_path_factory):
    """Checkpoints with the names, shapes and configs that PyTorch saved, and the known weights."""
    out = {}
    for name, key in PARTS.items():
        folder = out[name] = tmp_path_factory.mktemp(name)
        shapes = outputs["saved"][key]
        save_file({n: weight(n, tuple(shape)) for n, shape in shapes.items()}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(outputs["saved"][f"{key}_config"]))
        if key != "original_vq":
            load(None, CODES).save(folder)
        if key != "original_lm":
            (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR | {"image_mean": [0.5] * 3}))
    return out


@pytest.fixture(scope="module")
def models(folders):
    both = progemu_jax.load(folders["language_model"], tokenizer=folders["tokenizer"])
    return {"transformers": progemu_jax.load(folders["transformers"]), "original": both}


@pytest.mark.parametrize("dialect", ["original", "transformers"])
def test_logits(models, outputs, dialect):
    ours, theirs = models[dialect].logits(some_tokens(2, 40))[:, ::8], outputs[f"{dialect}_logits"]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_every_layer_of_the_language_model(models, outputs):
    model, theirs = models["original"], outputs["hidden_states"]
    net = transformer.Transformer(model.config)
    run = jax.jit(lambda p, t: net.apply({"params": p}, t, capture_intermediates=True)[1]["intermediates"])
    seen = run(model.params, some_tokens(2, 40))
    layers = [seen[f"layers_{i}"]["__call__"][0][0] for i in range(LM["num_hidden_layers"])]
    layers[-1] = seen["norm"]["__call__"][0]  # the last hidden state of the library is normed
    for index, (ours, wanted) in enumerate(zip(layers, theirs[1:], strict=True)):
        error = np.abs(np.asarray(ours)[:, ::8] - wanted).max() / np.abs(wanted).max()
        assert error <= 1e-5, f"layer {index}: {error}"


def test_bfloat16_logits_point_the_same_way(models, outputs):
    import dataclasses

    model, theirs = models["original"], outputs["original_logits"]
    cfg = dataclasses.replace(model.config, dtype="bfloat16", param_dtype="bfloat16")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.params)
    net = transformer.Transformer(cfg)
    run = jax.jit(lambda p, t: transformer.logits(p, net.apply({"params": p}, t)[0]))
    ours = np.asarray(run(params, some_tokens(2, 40)))[:, ::8]
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    assert cosine.min() >= 0.999


def test_every_greedy_token(models, outputs):
    model, (h, w) = models["original"], GRID
    layout = sequence.Layout(h, w, LM["max_position_embeddings"])
    policy = Sampling(temperature=0.0, text_temperature=0.0, max_text=TEXT_TOKENS, min_text=TEXT_TOKENS)
    prompts = pad_prompts(model.vocabulary, layout, [some_codes(1, GRID)[0]], [PROMPT], policy=policy)
    assert prompts.tokens[0, : len(prompt_of(model.vocabulary))].tolist() == prompt_of(model.vocabulary).tolist()
    keys = jax.vmap(jax.random.key)(np.zeros(1, np.uint32))
    out = generate.generate(model.params, model.config, layout, model.grammar, policy, prompts, keys)
    tokens = [*sequence.image_body(model.vocabulary, np.asarray(out.codes[0])), *np.asarray(out.text[0])]
    assert len(tokens) == 64
    assert tokens == outputs["greedy"].tolist()


@pytest.mark.parametrize("dialect", ["original", "transformers"])
def test_codes(models, outputs, dialect):
    codes = models[dialect].tokenize(pictures((16, 40), 4))
    theirs = outputs[f"{dialect}_codes_16x40"]
    assert len(np.unique(theirs)) > 10
    np.testing.assert_array_equal(codes, theirs)


@pytest.mark.parametrize("dialect", ["original", "transformers"])
def test_decoded_images(models, outputs, dialect):
    ours = models[dialect].detokenize(some_codes(2, (12, 12)), rgb=True)
    theirs = np.clip((outputs[f"{dialect}_decoded"] + 1) * 127.5, 0, 255).astype(np.uint8)
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    gray = models[dialect].detokenize(some_codes(2, (12, 12)))
    np.testing.assert_array_equal(gray, pixels.luma(ours))


@pytest.mark.parametrize("size", SIZES)
def test_the_image_processor_makes_the_references_pixels(outputs, size):
    processor = image_processor.ImageProcessor(**PROCESSOR)
    np.testing.assert_array_equal(processor(pictures(size, 1)[0]), outputs[f"pixels_{size[0]}x{size[1]}"])


def test_the_text_tokenizer_equals_the_reference_token_for_token(outputs, tmp_path):
    write_ranks(tmp_path / TEXT_FILE, many_ranks())
    write_vision_tokens(tmp_path / VISION_FILE, 32_768)
    vocabulary = load(tmp_path)
    for text, ids in zip(TEXTS, outputs["ids"], strict=True):
        assert vocabulary.encode(text, allow_special=True) == ids, text
    for row, text in zip(BROKEN, outputs["texts"], strict=True):
        assert vocabulary.decode(row) == text, row


def test_counterfactuals_come_out_of_an_imported_model(models):
    model = models["transformers"]
    h, w = model.layout.height, model.layout.width
    prior = pictures((64, 48), 1)[0]
    out = model.counterfactual(prior, "New small left pleural effusion.", max_text=4)
    factor = model.tokenizer.config.factor
    assert out.images.shape == (1, h * factor, w * factor)
    assert out.codes.shape == (1, h, w)
    assert model.grammar.stops == (LM["eos_token_id"], LM["pad_token_id"])


def test_an_imported_model_can_be_trained(models):
    """Gradients reach every parameter of both parts' forward passes."""
    model, tokens = models["original"], some_tokens(1, 16)
    net = transformer.Transformer(model.config)

    def loss(params):
        scores = transformer.logits(params, net.apply({"params": params}, tokens)[0])
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(scores)[:, :-1], tokens[:, 1:, None], -1))

    grads = jax.jit(jax.grad(loss))(model.params)
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
