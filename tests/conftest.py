"""Tests run on CPU, on one thread a process (pytest-xdist supplies the parallelism), with 8 fake devices.

What XLA compiles is kept in the user's cache, for all processes of a run (the workers of pytest-xdist and what tests
start) and for the next run: most of a test's time is compilation, and many compile the same. A CPU's program is machine
code for the exact processor, so each kind of processor and each jaxlib has a folder of its own; within it JAX tells
programs apart by their text, flags and devices.
"""

import contextlib
import hashlib
import os
import platform
import time
from importlib import metadata
from pathlib import Path

UNUSED_DAYS = 7  # of a kept program, then it goes

# Files that take longest, from the first: with `--dist loadfile --no-loadscope-reorder` (make test) none of them is
# left to one worker at the end.
LONGEST = (
    "systems/progemu/test_whole_run",
    "training/test_meshes",
    "sampling/test_engine",
    "parity/test_diffusion",
    "tasks/test_progemu",
    "tasks/test_lora",
    "sampling/test_speculation",
    "models/test_vqgan",
    "inference/test_meshes",
    "kernels/test_convolution",
    "models/test_transformer",
    "kernels/test_attention",
    "plan/test_plan",
    "sampling/test_diffusion",
    "data/test_build",
)


def _flag(text):
    flags = os.environ.get("XLA_FLAGS", "")
    if text.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {text}".strip()


def _compiled():
    """Folder of compiled programs."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    lines = [platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        lines += sorted(
            line for line in first if line.startswith(("vendor", "cpu family", "model", "flags", "Features"))
        )
    processor = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    return base / "progemu_jax/tests" / f"jaxlib-{metadata.version('jaxlib')}-{processor}"


# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compiled()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
_flag("--xla_force_host_platform_device_count=8")
_flag("--xla_cpu_multi_thread_eigen=false")


def pytest_sessionstart(session):
    """What no test has used for days goes; each version of the code leaves its programs."""
    if not os.environ.get("PYTEST_XDIST_WORKER"):
        for path in _compiled().glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - max(path.stat().st_atime, path.stat().st_mtime) > UNUSED_DAYS * 86_400:
                    path.unlink()


def pytest_collection_modifyitems(items):
    place = {f"tests/{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(LONGEST)))
