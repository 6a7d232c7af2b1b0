"""Starting from imported weights: the same function, whatever is added; and what is no start."""

import dataclasses

import numpy as np
import pytest
from support.initial import initial
from support.language_model import MODEL, logits

from progemu_jax.checkpoints import export
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.config import Config
from progemu_jax.errors import UserError
from progemu_jax.files.settings import from_dict, to_dict
from progemu_jax.models import transformer
from progemu_jax.models.transformer import TransformerConfig
from progemu_jax.models.vqgan import VQGANConfig
from progemu_jax.sampling.policy import Sampling
from progemu_jax.systems.progemu.initial_weights import open_folder
from progemu_jax.systems.progemu.model_config import model_parts
from progemu_jax.text import vocabulary


def language_export(folder, model=MODEL):
    words = vocabulary.load(None, 16)
    model = dataclasses.replace(model, vocab_size=words.size)
    params = initial(lambda key: transformer.init_params(model, key), 3)
    config = {"model": to_dict(model), "layout": {"height": 2, "width": 2, "length": 64}, "vocabulary": "",
              "policy": to_dict(Sampling()), "vocabulary_hash": words.hash, "hash": "0" * 12}  # fmt: skip
    export.export(params, config, folder)
    return params, model


@pytest.mark.parametrize("scan", [False, True])
def test_a_start_is_the_imported_function_whatever_is_added(tmp_path, scan):
    params, model = language_export(tmp_path / "lm")
    own = dataclasses.replace(TransformerConfig(), lora_rank=2, prior_alignment=True, scan_layers=scan, dropout=0.1)
    start = open_folder(str(tmp_path / "lm"), "language_model", own)
    assert (start.model.hidden_size, start.model.dropout) == (32, 0.1)
    assert start.vocabulary.codebook_size == 16
    read = start.variables()
    aligned = np.full((2, 12), 5, np.int32)
    np.testing.assert_allclose(logits(read, start.model, aligned), logits(params, model), atol=1e-5)
    assert (
        float(np.abs(flatten(read)["layers.mlp.up_proj_lora_a" if scan else "layers_0.mlp.up_proj_lora_a"]).max()) > 0
    )


def test_a_start_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"config\.progemu\.init: .*no such folder"):
        open_folder(str(tmp_path / "none"), "language_model", MODEL)
    language_export(tmp_path / "lm")
    with pytest.raises(UserError, match=r"config\.tokenizer\.init=.*holds no tokenizer"):
        open_folder(str(tmp_path / "lm"), "tokenizer", VQGANConfig())


def test_a_built_in_vocabulary_takes_the_tokenizers_number_of_codes(tiny_folder):
    """Named in the config, as the phantom's configs do."""
    start = {"init": str(tiny_folder)}
    task = {"length": 112, "prompt_budget": 24}
    config = {"vocabulary": str(vocabulary.BUILT_IN), "data": {"image_size": 32}, "tokenizer": start}
    config = from_dict(Config, config | {"progemu": start | {"task": task}})
    assert model_parts(config)[0].codebook_size == 64
