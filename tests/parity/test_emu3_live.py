"""Our models against live PyTorch, on checkpoints that it writes itself (`make parity`).

With EMU3 in the environment (a checkout of github.com/baaivision/Emu3) the public VisionVQ and text tokenizer are
compared too; without it, the original dialect's tokenizer is held by the stored outputs only.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.emu3_reference import (
    BROKEN,
    CODES,
    FULL_VQ,
    GRID,
    LM,
    PROCESSOR,
    PROMPT,
    SIZES,
    TEXT_TOKENS,
    TEXTS,
    fill,
    greedy,
    many_ranks,
    original,
    original_text_tokenizer,
    original_vq,
    pictures,
    prompt_of,
    some_codes,
    some_tokens,
    torch_full,
    torch_lm,
    transformers_vq,
    write_run,
)

import progemu_jax
from progemu_jax.checkpoints import safetensors
from progemu_jax.convert.convert import convert
from progemu_jax.convert.emu3 import folder as emu3_folder
from progemu_jax.files.settings import to_dict
from progemu_jax.models import transformer, vqgan
from progemu_jax.models.pixels import normalize
from progemu_jax.sampling import generate
from progemu_jax.sampling.policy import Sampling
from progemu_jax.sampling.prompts import pad_prompts
from progemu_jax.text import sequence
from progemu_jax.text.vocabulary import TEXT_FILE, VISION_FILE, load, write_ranks, write_vision_tokens

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.parity, pytest.mark.timeout(3600)]
EMU3 = os.environ.get("EMU3")
needs_emu3 = pytest.mark.skipif(not EMU3, reason="EMU3 does not name a checkout of the public Emu3 code")
DIALECTS = ["transformers", pytest.param("original", marks=needs_emu3)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def full():
    return torch_full(FULL_VQ)


@pytest.fixture(scope="module")
def lm():
    return torch_lm()


@pytest.fixture(scope="module")
def folder(full, tmp_path_factory):
    path = tmp_path_factory.mktemp("full")
    full.save_pretrained(path)
    load(None, CODES).save(path)
    return path


@pytest.fixture(scope="module")
def lm_folder(lm, tmp_path_factory):
    """In shards."""
    path = tmp_path_factory.mktemp("lm")
    lm.save_pretrained(path, max_shard_size="150KB")
    assert (path / safetensors.INDEX).exists()
    load(None, CODES).save(path)
    return path


@pytest.fixture(scope="module")
def models(folder, lm_folder, tmp_path_factory):
    """Per dialect: (our model, torch VQ, torch language model)."""
    out = {"transformers": progemu_jax.load(folder)}
    if EMU3:
        path = tmp_path_factory.mktemp("vq")
        original_vq(EMU3, FULL_VQ).save_pretrained(path)
        out["original"] = progemu_jax.load(lm_folder, tokenizer=path)
    else:
        out["original"] = progemu_jax.load(lm_folder)
    return out


@pytest.fixture(scope="module")
def vqs(full):
    return {"transformers": full.model.vqmodel} | ({"original": original_vq(EMU3, FULL_VQ)} if EMU3 else {})


def largest_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float32), np.asarray(theirs.float() if torch.is_tensor(theirs) else theirs)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def torch_logits(model, tokens):
    return model(input_ids=torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()


@pytest.mark.parametrize("dialect", ["transformers", "original"])
def test_logits_and_every_greedy_token(models, full, lm, dialect):
    model, theirs = models[dialect], full if dialect == "transformers" else lm
    tokens = some_tokens(3, 200)
    assert largest_error(model.logits(tokens), torch_logits(theirs, tokens)) <= 1e-4
    layout = sequence.Layout(*GRID, LM["max_position_embeddings"])
    policy = Sampling(temperature=0.0, text_temperature=0.0, max_text=TEXT_TOKENS, min_text=TEXT_TOKENS)
    prompts = pad_prompts(model.vocabulary, layout, [some_codes(1, GRID)[0]], [PROMPT], policy=policy)
    keys = jax.vmap(jax.random.key)(np.zeros(1, np.uint32))
    out = generate.generate(model.params, model.config, layout, model.grammar, policy, prompts, keys)
    ours = [*sequence.image_body(model.vocabulary, np.asarray(out.codes[0])), *np.asarray(out.text[0]).tolist()]
    assert len(ours) == 64
    assert ours == greedy(theirs, prompt_of(model.vocabulary), model.vocabulary, 64).tolist()


def test_bfloat16_logits(tmp_path):
    theirs = torch_lm().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    model = progemu_jax.load(tmp_path)
    assert model.config.dtype == model.config.param_dtype == "bfloat16"
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(model.params))
    tokens = some_tokens(3, 200)
    ours, wanted = model.logits(tokens), torch_logits(theirs, tokens)
    cosine = (ours * wanted).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(wanted, axis=-1)
    assert cosine.min() >= 0.999


def outputs_of(model, run):
    """{module name: output tensor} of every module that a torch model calls, in the order of the calls."""
    seen, hooks = {}, []

    def keep(name):
        def hook(module, arguments, result):
            result = result[0] if isinstance(result, tuple) else result
            if torch.is_tensor(result):
                seen[name] = result.detach().clone()

        return hook

    for name, module in model.named_modules():
        hooks.append(module.register_forward_hook(keep(name)))
    run()
    for hook in hooks:
        hook.remove()
    return seen


def test_every_layer_of_the_language_model(models, lm):
    model, tokens = models["original"], some_tokens(2, 60)
    theirs = outputs_of(lm, lambda: torch_logits(lm, tokens))
    net = transformer.Transformer(model.config)
    run = jax.jit(lambda p, t: net.apply({"params": p}, t, capture_intermediates=True)[1]["intermediates"])
    seen = run(model.params, tokens)
    compared = 0
    for name, wanted in theirs.items():
        path = name.removeprefix("model.").replace("layers.", "layers_").split(".")
        place = seen
        for part in path:
            place = place.get(part, {}) if isinstance(place, dict) else {}
        if "__call__" not in place:
            continue
        ours = place["__call__"][0]
        error = largest_error(ours[0] if isinstance(ours, tuple) else ours, wanted)
        assert error <= 1e-5, f"{name}: {error}"
        compared += 1
    assert compared == 5 * LM["num_hidden_layers"] + 1


def aligned(theirs, ours, batch):
    """Torch's output in the places that ours has: channels last, one of the repeated frames, codes' resolution."""
    if theirs.ndim == 5:  # over time: [B, C, F, H, W]; ours may hold the first frames only
        theirs = theirs.permute(0, 2, 3, 4, 1)[:, : ours.shape[1]]
        return theirs.numpy()
    if theirs.ndim == 3:  # attention over pixels: [B, H W, C]
        theirs = theirs.reshape(len(theirs), *ours.shape[1:3], -1)
    else:
        theirs = theirs.permute(0, 2, 3, 1)
    theirs = theirs[:: len(theirs) // batch]
    step = theirs.shape[1] // ours.shape[1]  # our 1 x 1 convolutions of codes run before they are enlarged
    return theirs[:, ::step, ::step].numpy()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_layer_of_the_image_tokenizer(models, vqs, dialect):
    tokenizer, vq, size = models[dialect].tokenizer, vqs[dialect], (40, 24)
    images, codes = pictures(size, 2), some_codes(2, (5, 3))
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    more = () if dialect == "original" else (torch.tensor([size] * 2),)
    theirs = outputs_of(vq, lambda: (vq.encode(pixels, *more), vq.decode(torch.from_numpy(codes.astype(np.int64)))))
    net = vqgan.VQGAN(tokenizer.config)

    def run(variables, images, codes):
        keep = {"capture_intermediates": True, "mutable": ["intermediates"]}
        one = net.apply(variables, normalize(images, 3), method="encode", **keep)[1]["intermediates"]
        two = net.apply(variables, codes, method="detokenize", **keep)[1]["intermediates"]
        return one, two

    halves = jax.jit(run)(tokenizer.variables, images, codes)
    entries = emu3_folder.tokenizer_entries(tokenizer.config, dialect, "")
    modules = {e.leaf.split(".", 1)[1].rpartition(".")[0]: e.name.rpartition(".")[0] for e in entries}
    compared = 0
    for path, name in modules.items():
        for half in halves:
            place = half
            for part in path.split("."):
                place = place.get(part, {})
            if "__call__" in place and name in theirs:
                ours = np.asarray(place["__call__"][0])
                error = largest_error(ours, aligned(theirs[name], ours, len(ours)))
                assert error <= 2e-5, f"{name}: {error}"
                compared += 1
    print(f"{dialect}: {compared} of {len(modules)} modules compared")
    assert compared >= 0.95 * len(modules) - 1  # all but the code-book, which is no module of ours


@pytest.mark.parametrize("dialect", DIALECTS)
def test_codes_of_a_thousand_images(tmp_path, dialect):
    """Odd sizes go through both image processors; 32,768 codes as in Emu3, so that near ties occur."""
    from transformers import Emu3ImageProcessor, Emu3VQVAE, Emu3VQVAEConfig

    config = FULL_VQ | {"codebook_size": 32_768}
    if dialect == "original":
        vq = original_vq(EMU3, config)
    else:
        vq = fill(Emu3VQVAE(Emu3VQVAEConfig(**transformers_vq(config))))
    vq.save_pretrained(tmp_path)
    tokenizer = progemu_jax.load(tmp_path).tokenizer
    tokenizer.processor = dataclasses.replace(tokenizer.processor, **PROCESSOR)
    if dialect == "original":
        processor = original(EMU3, "emu3.tokenizer.image_processing_emu3visionvq").Emu3VisionVQImageProcessor
    else:
        processor = Emu3ImageProcessor
    processor = processor(**PROCESSOR, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    encode = jax.jit(lambda v, x: vqgan.VQGAN(tokenizer.config).apply(v, normalize(x, 3), method="encode"))
    table = np.asarray(tokenizer.variables["params"]["quantize"]["embedding"], np.float64)
    positions, differing, used = 0, 0, set()
    for size in SIZES:
        images = pictures(size, 100, seed=1)
        pixels = torch.from_numpy(np.stack(processor(list(images), return_tensors="np")["pixel_values"]))
        more = () if dialect == "original" else (torch.tensor([pixels.shape[-2:]] * 100),)
        theirs = vq.encode(pixels, *more)
        theirs = theirs if torch.is_tensor(theirs) else torch.stack(theirs.image_tokens)
        resized = np.stack([tokenizer.resize(image) for image in images])
        ours, theirs = tokenizer.tokenize(resized, batch_size=100), theirs.reshape(100, *theirs.shape[-2:]).numpy()
        positions, used = positions + ours.size, used | set(theirs.ravel().tolist())
        other = ours != theirs
        if other.any():
            z = np.asarray(encode(tokenizer.variables, resized), np.float64)[other]
            distance = [np.square(z - table[codes[other]]).sum(-1) for codes in (ours, theirs)]
            np.testing.assert_allclose(*distance, rtol=1e-5, atol=1e-5)
            differing += other.sum()
    print(f"{dialect}: {differing} of {positions} codes differ, all ties; {len(used)} codes in use")
    assert len(used) > 1000
    assert differing <= 0.001 * positions


@pytest.mark.parametrize("dialect", DIALECTS)
def test_decoded_images(models, vqs, dialect):
    codes = some_codes(8, (6, 9))
    theirs = vqs[dialect].decode(torch.from_numpy(codes.astype(np.int64))).reshape(8, 3, 48, 72)
    theirs = np.clip((theirs.permute(0, 2, 3, 1).numpy() + 1) * 127.5, 0, 255).astype(np.uint8)
    ours = models[dialect].detokenize(codes, rgb=True)
    assert theirs.std() > 20
    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_pixels_change_the_logits_of_the_peer(models, full):
    """transformers' Emu3 took images and ignored them for a year, from #37033 to #47948."""
    model, place = models["transformers"], full.config.image_token_id
    images = pictures((8 * GRID[0], 8 * GRID[1]), 2)
    layout = sequence.Layout(*GRID, LM["max_position_embeddings"])
    prompts = [sequence.prompt_tokens(model.vocabulary, layout, c, PROMPT)["tokens"] for c in model.tokenize(images)]
    tokens = np.stack(prompts)
    start = int(np.argmax(tokens[0] == model.vocabulary.img)) + 1
    end = start + GRID[0] * (GRID[1] + 1)  # each row with its EOL
    asked = tokens.copy()
    asked[:, start:end] = place
    assert np.array_equal(*asked)
    pixels = torch.from_numpy(images.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    theirs = full(
        input_ids=torch.from_numpy(asked.astype(np.int64)),
        pixel_values=pixels,
        image_sizes=torch.tensor([images.shape[1:3]] * 2),
    ).logits.numpy()
    assert largest_error(theirs[0, :start], theirs[1, :start]) == 0
    assert largest_error(theirs[0, end:], theirs[1, end:]) > 0.01
    assert largest_error(model.logits(tokens), theirs) <= 1e-4


@pytest.mark.parametrize("part", ["full", "lm"])
def test_round_trip_loads_in_transformers(part, folder, lm_folder, full, lm, tmp_path):
    source, model = (folder, full) if part == "full" else (lm_folder, lm)
    convert(source, tmp_path / "run")
    assert "bit for bit" in convert(tmp_path / "run", tmp_path / "back")
    one, two = (safetensors.open_folder(path) for path in (source, tmp_path / "back"))
    assert one.keys() == two.keys()
    assert all((t.dtype, t.shape) == (two[n].dtype, two[n].shape) for n, t in one.items())
    assert all(np.array_equal(t.read(), two[n].read()) for n, t in one.items())
    check_in_transformers(type(model), tmp_path / "back", model)


def check_in_transformers(kind, path, model):
    back, report = kind.from_pretrained(path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    tokens = some_tokens(1, 30)
    np.testing.assert_array_equal(torch_logits(back.eval(), tokens), torch_logits(model, tokens))
    return back


def test_models_of_our_own_load_in_transformers(folder, full, lm, tmp_path):
    from transformers import Emu3ForCausalLM

    model, vocabulary = progemu_jax.load(folder), load(None, CODES)
    write_run(tmp_path / "run", model, vocabulary, to_dict(model.layout), to_dict(model.policy))
    convert(tmp_path / "run", tmp_path / "both")
    both = check_in_transformers(type(full), tmp_path / "both", full)
    assert both.config.image_token_id == full.config.image_token_id  # without it, pixels have no place
    convert(tmp_path / "run/train/export", tmp_path / "lm", "transformers")
    check_in_transformers(Emu3ForCausalLM, tmp_path / "lm", lm)


@needs_emu3
def test_the_text_tokenizer(tmp_path):
    write_ranks(tmp_path / TEXT_FILE, many_ranks())
    write_vision_tokens(tmp_path / VISION_FILE, 32_768)
    ours, theirs = load(tmp_path), original_text_tokenizer(EMU3, tmp_path)
    for text in TEXTS:
        assert ours.encode(text, allow_special=True) == theirs.convert_tokens_to_ids(theirs.tokenize(text)), text
    for row in BROKEN:
        assert ours.decode(row) == theirs._decode(list(row)), row


def test_lpips_in_both_namings(tmp_path):
    """VGG-16 and LPIPS written with torch's own layers, random weights, against ours read from their state dicts."""
    from safetensors.torch import save_file

    from progemu_jax.convert import lpips as reader
    from progemu_jax.errors import UserError
    from progemu_jax.models import lpips

    nn, F = torch.nn, torch.nn.functional
    torch.manual_seed(0)
    layers, width, index, lin = [], 3, 0, []
    stages = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    for stage, features in zip(stages, (64, 128, 256, 512, 512), strict=True):
        for number in stage:
            assert index == number
            layers += [nn.Conv2d(width, features, 3, padding=1), nn.ReLU()]
            nn.init.normal_(layers[-2].bias, std=0.1)
            width, index = features, index + 2
        layers.append(nn.MaxPool2d(2))
        index += 1
        lin.append(torch.rand(1, features, 1, 1))
    net = nn.Sequential(*layers)

    def theirs(x, y):
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        scale = torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        a, b, total, stage = (x - shift) / scale, (y - shift) / scale, 0.0, 0
        for number, layer in enumerate(net):
            a, b = layer(a), layer(b)
            if number in (3, 8, 15, 22, 29):
                one, two = (f / (f.pow(2).sum(1, keepdim=True).sqrt() + 1e-10) for f in (a, b))
                total = total + F.conv2d((one - two).pow(2), lin[stage]).mean((1, 2, 3))
                stage += 1
        return total

    x, y = (torch.rand(2, 3, 32, 48, requires_grad=i == 0) * 2 - 1 for i in range(2))
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        wanted = theirs(x, y)
        wanted.sum().backward()
    torchvision = {f"features.{name}": t for name, t in net.state_dict().items()}
    torchvision |= {f"lin{i}.model.1.weight": t for i, t in enumerate(lin)}
    slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
    package = {f"net.slice{slices[int(n.split('.')[0])]}.{n}": t.clone() for n, t in net.state_dict().items()} | {
        f"lins.{i}.model.1.weight": t.clone() for i, t in enumerate(lin)
    }
    for name, state in (("torchvision", torchvision), ("package", package)):
        path = tmp_path / f"{name}.safetensors"
        save_file(state, path)
        params = reader.load(path)
        ours = [jnp.asarray(z.detach().permute(0, 2, 3, 1).numpy()) for z in (x, y)]
        found = lpips.distance(params, *ours)
        np.testing.assert_allclose(found, wanted.detach(), rtol=1e-4)
        grad = jax.grad(lambda a, p=params, b=ours[1]: lpips.distance(p, a, b).sum())(ours[0])
        assert largest_error(np.asarray(grad).transpose(0, 3, 1, 2), x.grad) < 1e-3
    gray = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 32, 32, 1)), jnp.float32)
    assert float(lpips.distance(params, gray, gray)[0]) == 0.0
    assert np.isfinite(np.asarray(jax.grad(lambda a: lpips.distance(params, a, gray)[0])(gray))).all()
    del package["lins.3.model.1.weight"]
    save_file(package, path)
    with pytest.raises(UserError, match=r"lin3\.model\.1\.weight"):
        reader.load(path)
