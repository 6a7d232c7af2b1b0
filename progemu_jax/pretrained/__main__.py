"""python -m progemu_jax.pretrained --run=RUN [--out=DIR]

Packs a finished phantom run for the package: DIR/phantom, which `progemu_jax.load` reads like a run (language model,
image tokenizer, prior decoder if there is one, vocabulary, sampling policy), and DIR/scorer, the evaluating scorer. The
weights are in 16 bits, with a hash that loading checks; together at most 30 MB. Without --out they go where
`progemu_jax.load("phantom")` finds them. An earlier pack is replaced once the new one is complete.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

from progemu_jax.checkpoints import export, packed
from progemu_jax.checkpoints.arrays import flatten
from progemu_jax.convert import folders
from progemu_jax.convert.components import IN_RUN, LANGUAGE_MODEL, PRIOR_DECODER, PROGEMU, VOCABULARY
from progemu_jax.errors import UserError, exit_status
from progemu_jax.files.command_line import Parser
from progemu_jax.files.records import read_json, write_json
from progemu_jax.pretrained import MODEL, PLACE, SCORER

LIMIT = 30 * 10**6  # bytes, of model and scorer together: what a package may carry
SCORER_IN_RUN = "scorer/export"
_EXPORT = {MODEL: IN_RUN[LANGUAGE_MODEL], SCORER: ""}  # where a pack has one, by which it is known


def pack(run: Path, out: Path) -> str:
    """Writes out/phantom and out/scorer of a run directory; returns a sentence with their size.

    Raises:
      UserError: a run that is not of ProgEmu on the phantom or not complete, more than 30 MB, an `out` in use.
    """
    wanted = {name: run / place for name, place in {**IN_RUN, SCORER: SCORER_IN_RUN}.items()}
    for name in (*PROGEMU, SCORER):
        if not (wanted[name] / "export.json").exists():
            raise UserError(f"{run}: no {wanted[name].relative_to(run)}/export.json; give a finished run of ProgEmu")
    config = read_json(run / "config.json") or {}
    data = {key: value for key, value in config.get("data", {}).items() if key in ("phantom", "tree_size", "source")}
    if data.get("source", "phantom") != "phantom":  # weights may repeat what they were trained on
        raise UserError(f"{run}: trained on {data['source']}; only a model of the phantom goes into the package")
    for name, inside in _EXPORT.items():
        if (out / name).exists() and not (out / name / inside / "export.json").exists():
            raise UserError(f"{out / name}: exists and is no packed model; choose another --out or delete it")
    staged = {name: out / f"{name}.tmp" for name in _EXPORT}
    try:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
        for name in (*PROGEMU, PRIOR_DECODER):
            if (wanted[name] / "export.json").exists():
                _pack_export(wanted[name], staged[MODEL] / IN_RUN[name])
        policy = folders.run_policy(run)
        policy = policy[0] if policy else export.read_export_config(wanted[LANGUAGE_MODEL])["policy"]
        write_json(staged[MODEL] / "config.json", {"data": data, "sample": {"policy": policy}})
        _pack_export(wanted[SCORER], staged[SCORER])
        size = sum(path.stat().st_size for folder in staged.values() for path in folder.rglob("*") if path.is_file())
        if size > LIMIT:
            raise UserError(f"{run}: {size / 1e6:.1f} MB packed, at most {LIMIT / 1e6:.0f} go into the package")
        for name, folder in staged.items():
            shutil.rmtree(out / name, ignore_errors=True)
            folder.rename(out / name)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from None
    finally:
        for folder in staged.values():
            shutil.rmtree(folder, ignore_errors=True)
    return f"{out / MODEL}, {out / SCORER}: {size / 1e6:.1f} MB of {LIMIT / 1e6:.0f}"


def _pack_export(source: Path, target: Path) -> None:
    params, config = export.load_export(source)
    packed.write({name: np.asarray(leaf) for name, leaf in flatten(params).items()}, config, target)
    if (source / VOCABULARY).is_dir():
        shutil.copytree(source / VOCABULARY, target / VOCABULARY)


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--run", required=True, metavar="RUN", help="a finished run directory")
    parser.add_argument("--out", default=PLACE, metavar="DIR", help="default: inside the package")
    args = parser.parse_args(argv)
    return exit_status(lambda: pack(Path(args.run), Path(args.out)))


if __name__ == "__main__":
    sys.exit(main())
