"""Compiled programs are kept on disk, so that a stage, a run or a model that comes after another compiles nothing anew.

The folder is the user's, one for each jaxlib and kind of processor: a CPU's program is machine code, and that of one
kind of processor may crash on another. Within it JAX tells programs apart, by their text, compiler and flags.

Environment:
  PROGEMU_CACHE=DIR           instead of ~/.cache/progemu_jax; off (or 0): nothing is kept
  JAX_COMPILATION_CACHE_DIR   the user's own folder, in which nothing is looked after
  XDG_CACHE_HOME              instead of ~/.cache
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import sys
import tempfile
import time
import warnings
import zlib
from importlib import metadata
from pathlib import Path

import jax

from progemu_jax.errors import shown

SETTING, OWN_FOLDER = "PROGEMU_CACHE", "JAX_COMPILATION_CACHE_DIR"
OFF = ("0", "off", "no", "false")
MOST_BYTES = 2**30  # of a folder, when a process starts; what has not been used for longest goes
LEAST_SECONDS = 0.2  # of compilation; reading a program back takes hundredths


def keep_programs() -> Path | None:
    """Lets JAX keep compiled programs, from now on; call it before the first is compiled. Commands do, and `load`.

    Returns the folder, or None when nothing is kept, or where was settled before: by the user, or by an earlier call.
    A folder that cannot be written is one line on stderr, once, and all goes on without.
    """
    if os.environ.get(SETTING, "").lower() in OFF or os.environ.get(OWN_FOLDER):
        return None
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return None  # the program that we are in has decided
    where = folder()
    try:
        if not where.is_absolute():
            raise FileNotFoundError(errno.ENOENT, "this user has no home")
        where.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=where):
            pass
        tidy(where)
    except OSError as error:
        _say_once(f"compiled programs are not kept: {where}: {error.strerror or error}")
        return None
    # A damaged entry (its writer was killed) is compiled anew, which is no news; `tidy` takes it away.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(where))
    settings = {
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    return where


@functools.cache
def _say_once(line: str) -> None:
    print(shown(line), file=sys.stderr)


def folder() -> Path:
    """Where this user's programs for this jaxlib and processor lie; no absolute path for a user without a home."""
    home, given = os.environ.get("XDG_CACHE_HOME"), os.environ.get(SETTING, "")
    base = Path(home) if home and os.path.isabs(home) else Path(os.path.expanduser("~")) / ".cache"
    base = Path(os.path.expanduser(given)).absolute() if given and given.lower() not in OFF else base / "progemu_jax"
    return base / f"jaxlib-{metadata.version('jaxlib')}-{processor()}"


def processor() -> str:
    """The kind of this processor in letters, digits and dashes: its name, and a hash of all that it can do."""
    name, features = _cpu_info()
    words = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40]
    return f"{words or 'cpu'}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _cpu_info(path: str = "/proc/cpuinfo") -> tuple[str, str]:
    """(name, everything that tells one kind from another) of the first processor; Linux says more than Python."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path(path).read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            found[key.strip()] = value.strip()
    kinds = ("vendor_id", "cpu family", "model", "stepping", "model name")  # x86
    kinds += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision")  # ARM
    flags = " ".join(sorted((found.get("flags") or found.get("Features") or "").split()))
    told = [platform.system(), platform.machine(), platform.processor(), *(found.get(k, "") for k in kinds), flags]
    return found.get("model name") or platform.machine(), "\n".join(told)


def tidy(where: Path, most: int = MOST_BYTES) -> None:
    """Removes damaged programs, and those that were not used for longest until `most` bytes are left.

    Another process may be at work in the folder: what it loses it compiles anew.
    """
    mark, now, checked = where / ".checked", time.time(), 0.0
    with contextlib.suppress(FileNotFoundError):
        checked = mark.stat().st_mtime
    entries, size = [], 0
    for path in where.glob("*-cache"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            entries.append((max(status.st_atime, status.st_mtime), status, path))
    for _, status, path in sorted(entries, key=lambda entry: entry[0], reverse=True):
        size += status.st_size
        if size > most or (status.st_mtime >= checked and not _whole(path)):
            path.unlink(missing_ok=True)
            size -= status.st_size
    mark.touch()
    os.utime(mark, (now, now))


def _whole(path: Path) -> bool:
    """False when the writer of a file was killed on the way; of zlib's format, which JAX uses without zstandard."""
    try:
        data = path.read_bytes()
        return bool(data) and (data[0] != 0x78 or bool(zlib.decompress(data)))
    except (FileNotFoundError, zlib.error):
        return False
