"""python -m progemu_jax.publish --model=RUN --repo=owner/name [--license=ID] [--private] [--acknowledge] [--out=DIR]

Sends a model to the Hugging Face Hub as one commit, for progemu_jax.load("hf:owner/name"): the weights as they are, in
safetensors with a SHA-256 that loading compares, and a model card made of the run (data, metrics, hash, limits,
licence). Nothing of the run's data goes along. --out only writes the folder, to be looked at; it is a model, too.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from progemu_jax import hub, pretrained
from progemu_jax.checkpoints import export, packed
from progemu_jax.convert import folders
from progemu_jax.convert.components import DIFFUSION, IN_RUN, LANGUAGE_MODEL, PRIOR_DECODER, PROGEMU
from progemu_jax.data.sources import SOURCES
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.files.records import read_json, write_json, write_text
from progemu_jax.inference.load import load
from progemu_jax.publish import card

# Keys of a config that name weights of others, of which a run says nothing.
BEGUN = ("progemu.init", "tokenizer.init", "autoencoder.weights", "text_encoder.weights", "diffusion.weights")
_KEPT = ("source", "image_size", "tree_size", "phantom")  # of config.data: no path of a machine
_MESSAGE = "Model and card, by progemu_jax.publish"


def publish(
    model: str,
    repo: str,
    licence: str | None = None,
    private: bool = False,
    acknowledge: bool = False,
    out: Path | None = None,
) -> str:
    """Sends the model of a run, or "phantom", to a repository of the Hub; returns a sentence with the pinned address.

    Args:
      repo: "owner/name". licence: the card's, an identifier of the Hub; Apache-2.0 where all training data was the
        phantom's, else to be named. acknowledge: weights of a cohort under an agreement, or of unknown data, may go.
      out: a new folder that is written instead; nothing is sent.

    Raises:
      UserError: no finished model, a cohort that is not acknowledged, no licence, an `out` in use, what `hub` says.
    """
    address = f"{hub.PREFIX}{repo}"
    if hub.parse(address)[1] is not None:
        raise UserError(f"--repo={repo}: expected owner/name; a commit has no name before it is there")
    run = Path(pretrained.find(model))
    parts = _parts(run)
    config = read_json(run / "config.json") or {}
    origin = _origin(config)
    if origin.restricted and not acknowledge:
        raise UserError(
            f"{model}: {origin.restricted}: weights may repeat what they were trained on (docs/data_use.md); where you "
            "may publish them, add --acknowledge"
        )
    if licence is None and origin.source == "phantom" and not origin.restricted:
        licence = "apache-2.0"
    if licence is None:
        raise UserError(f"{model}: name the licence that its data allows, --license=ID (cc-by-4.0, other, ...)")
    if out and out.exists():
        raise UserError(f"--out={out}: exists; name a new folder")
    with tempfile.TemporaryDirectory(prefix="progemu-publish-") as work:
        folder = out.with_name(f"{out.name}.tmp") if out else Path(work) / "model"
        try:
            shutil.rmtree(folder, ignore_errors=True)
            size = _write(parts, run, config, folder)
            facts = card.Facts(repo, licence, origin, load(folder), size, read_json(run / "metrics.json"))
            write_text(folder / "README.md", card.text(facts))
            if out:
                folder.rename(out)
                return f"{out}: {size / 1e6:.1f} MB and README.md, the card; nothing was sent"
            pinned = hub.publish(folder, repo, private, _MESSAGE)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return f"{pinned}: {size / 1e6:.1f} MB; progemu_jax.load({pinned!r})"


def _parts(run: Path) -> dict[str, Path]:
    """{kind: export} of a model with all its parts."""
    if folders.detect(run) != folders.OURS:
        raise UserError(f"{run}: is no run directory; python -m progemu_jax.convert makes one of it")
    found = folders.exports(run)
    for kinds in (PROGEMU, DIFFUSION):
        if set(kinds) <= set(found):
            return {kind: found[kind] for kind in (*kinds, PRIOR_DECODER) if kind in found}
    kinds = PROGEMU if LANGUAGE_MODEL in found else DIFFUSION if set(DIFFUSION) & set(found) else PROGEMU
    missing = next(kind for kind in kinds if kind not in found)
    raise UserError(f"{run}: no {IN_RUN[missing]}/export.json; give a run that is complete up to its train stage")


def _origin(config: Mapping[str, Any]) -> card.Origin:
    """What a run was trained on, by its config.json."""
    source, begun = config.get("data", {}).get("source", ""), []
    for key in BEGUN:
        section, name = key.split(".")
        if config.get(section, {}).get(name):
            begun.append(Path(config[section][name]).name)
    if source not in SOURCES:
        restricted = "no config.json says what it was trained on"
    elif source == "folder":
        restricted = "trained on a folder of pairs, of which nothing is known"
    elif SOURCES[source].credentialed:
        restricted = f"trained on {SOURCES[source].what}, which comes under an agreement"
    elif begun:
        restricted = f"began from {', '.join(begun)}, and nothing says what that was trained on"
    else:
        restricted = ""
    return card.Origin(source, tuple(begun), restricted)


def _write(parts: Mapping[str, Path], run: Path, config: Mapping[str, Any], folder: Path) -> int:
    """The model as a run directory of packed exports; returns its bytes."""
    for kind, source in parts.items():
        target = folder / IN_RUN[kind]
        tree, about = export.read_export_tree(source), export.read_export_config(source)
        packed.write_blocks(export.iterate_export(source), tree, about, target)
        for path in sorted(source.iterdir()):
            if path.name == "export.json" or path.name.startswith(packed.STEM):
                continue
            if any(one.is_symlink() for one in (path, *path.rglob("*"))):
                raise UserError(f"{path}: is or holds a link, which is not followed; put the file itself there")
            shutil.copytree(path, target / path.name) if path.is_dir() else shutil.copy(path, target / path.name)
    kept = {"data": {key: value for key, value in config.get("data", {}).items() if key in _KEPT}}
    if LANGUAGE_MODEL in parts:
        policy = folders.run_policy(run)
        kept["sample"] = {"policy": policy[0] if policy else export.read_export_config(parts[LANGUAGE_MODEL])["policy"]}
    write_json(folder / "config.json", kept)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--model", required=True, metavar="RUN", help='a finished run directory, or "phantom"')
    parser.add_argument("--repo", required=True, metavar="owner/name", help="made where it is not there")
    parser.add_argument("--license", metavar="ID", help="default: apache-2.0 for models of the phantom")
    parser.add_argument("--private", action="store_true", help="a repository that is made is private")
    parser.add_argument("--acknowledge", action="store_true", help="the data's agreement allows it")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the folder there and send nothing")
    args = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    return exit_status(
        lambda: publish(args.model, args.repo, args.license, args.private, args.acknowledge, args.out),
        "the same command goes on: what the Hub has is not sent again",
    )


if __name__ == "__main__":
    sys.exit(main())
