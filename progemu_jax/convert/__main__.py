"""python -m progemu_jax.convert --source=PATH --target=DIR [--dialect=original|transformers]

Converts a Hugging Face folder of Emu3, Emu3-VisionTokenizer or ProgEmu (either dialect, one file or shards) to a run
directory, and a run directory or an export back to a Hugging Face folder: what the source is is found out. A VQGAN in
taming-transformers' names, a folder or one file, becomes the image tokenizer of a run directory. Only safetensors are
read. --dialect is of a Hugging Face target; the default is the one that the weights came from.
"""

import os
import sys

from progemu_jax.convert.convert import convert
from progemu_jax.errors import exit_status
from progemu_jax.files.command_line import Parser


def main(argv: list[str] | None = None) -> int:
    """Run from command-line arguments; returns the exit status (2 for bad input)."""
    parser = Parser(__doc__)
    parser.add_argument("--source", required=True, metavar="PATH")
    parser.add_argument("--target", required=True, metavar="DIR")
    parser.add_argument("--dialect", metavar="original|transformers")
    args = parser.parse_args(argv)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # nothing is computed
    return exit_status(lambda: convert(args.source, args.target, args.dialect), "nothing is left of the target")


if __name__ == "__main__":
    sys.exit(main())
