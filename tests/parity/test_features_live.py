"""Features of a vision transformer against the library's own, on a small DINOv2 with random weights: `make parity`."""

import numpy as np
import pytest
from support.eval_cohort import one_line

from progemu_jax.scorers.features import VisionTransformer

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of RAD-DINO's layout: DINOv2 and its image processor, in the smallest size."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("weights") / "small-dino"
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    transformers.Dinov2Model(config).save_pretrained(out)
    size = {"shortest_edge": 28}
    transformers.BitImageProcessor(size=size, crop_size={"height": 28, "width": 28}).save_pretrained(out)
    return out


def test_pooled_output_is_the_class_token(folder):
    import torch
    import transformers
    from PIL import Image

    images = np.random.default_rng(0).integers(0, 256, (11, 40, 40), dtype=np.uint8)
    scorer = VisionTransformer(folder)
    got = scorer(images, "")["features"]
    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    for image, row in zip(images, got, strict=True):
        pixels = processor(images=Image.fromarray(image).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            theirs = model(**pixels).last_hidden_state[0, 0]
        np.testing.assert_allclose(row, theirs.numpy(), rtol=0, atol=1e-5)
    assert scorer.backbone.startswith("small-dino ")


def test_damaged_weights_are_one_line(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    one_line("cannot be loaded", VisionTransformer, tmp_path)
