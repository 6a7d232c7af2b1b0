"""The picture of cases, with texts as an untrained model writes them."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from progemu_jax.eval.case_sheet import write_sheet


@pytest.mark.parametrize(
    "text",
    ["New edema.", "costs $5 and $\\frac{", "bell \x07 and \x1d", "", None, "x" * 400_000, "word " * 80_000],
    ids=lambda text: repr(text)[:12],
)
def test_any_text_is_drawn_as_it_stands(tmp_path, text):
    image = np.full((16, 16), 90, np.uint8)
    refs = SimpleNamespace(image=lambda case, name: None if name == "counterfactual" else image)

    class Rows(SimpleNamespace):
        def __len__(self):
            return 2

    rows = Rows(case=np.array([0, 1]), prompts=["$x_{", "New edema."], texts=[text, text])
    first = SimpleNamespace(has_images=True, image=lambda refs, r: image, rows=rows)
    write_sheet(tmp_path / "cases.png", first, refs)
    assert Image.open(tmp_path / "cases.png").size[0] > 100
