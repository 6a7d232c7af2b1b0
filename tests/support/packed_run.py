"""A run directory with random weights that can be packed: `tiny_run`, a prior decoder and a small scorer."""

import json
from pathlib import Path

from progemu_jax.checkpoints import export
from progemu_jax.files.settings import to_dict
from progemu_jax.models import prior_decoder
from progemu_jax.models.prior_decoder import PriorDecoderConfig
from support import small_scorer, tiny_run
from support.initial import initial

PAINTER = PriorDecoderConfig(widths=(8, 8), blocks=1)


def write(folder: Path) -> Path:
    """As a run leaves it, of 64 pixel films: 32 x 32 images, 4 x 4 codes of 64."""
    tiny_run.write(folder)
    painter = initial(lambda key: prior_decoder.init_params(PAINTER, key))
    export.export(painter, {"kind": "prior_decoder", "model": to_dict(PAINTER)}, folder / "decoder/export")
    scorer = small_scorer.phantom()
    config = {"kind": "scorer", "net": to_dict(small_scorer.SMALL), "image_size": 32}
    export.export(scorer.params, config, folder / "scorer/export")
    data = {"source": "phantom", "phantom": {"patients": 20, "size": 64}, "tree_size": 64, "image_size": 32}
    (folder / "config.json").write_text(json.dumps({"data": data, "sample": {"policy": tiny_run.POLICY}}))
    return folder
