"""Tests run on CPU, on one thread a process (pytest-xdist supplies the parallelism), with 8 fake devices.

What XLA compiles is kept in the user's cache, for all processes of a run (the workers of pytest-xdist and what tests
start) and for the next run: most of a test's time is compilation, and many compile the same.
"""

import os

import pytest

# Files that take longest, from the first: with `--dist loadfile --no-loadscope-reorder` (make test) none of them is
# left to one worker at the end.
LONGEST = (
    "soak/test_kills",
    "test_fuzz",
    "systems/progemu/test_whole_run",
    "training/test_meshes",
    "sampling/test_engine",
    "parity/test_diffusion",
    "sampling/test_speculation",
    "sampling/test_distribution",
    "kernels/test_convolution",
    "tasks/test_tokenizer",
    "models/test_vqgan",
    "tasks/test_lora",
    "models/test_transformer",
    "kernels/test_attention",
    "inference/test_meshes",
    "sampling/test_diffusion",
    "plan/test_plan",
    "data/test_build",
    "parity/test_emu3",
    "inference/test_load",
    "tasks/test_progemu",
)


def _flag(text):
    flags = os.environ.get("XLA_FLAGS", "")
    if text.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {text}".strip()


# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("NPROC", "16")  # threads of XLA's pool: more than devices, which wait for each other in it
_flag("--xla_force_host_platform_device_count=8")
_flag("--xla_cpu_multi_thread_eigen=false")
_flag("--xla_cpu_collective_call_terminate_timeout_seconds=600")


def pytest_configure(config):
    """Compiled programs: a folder for each jaxlib and kind of processor, beside the program's own."""
    import jax

    from progemu_jax.devices import compilation

    if compilation.OWN_FOLDER not in os.environ:
        folder = compilation.folder()
        folder = folder.parent / "tests" / folder.name
        folder.mkdir(parents=True, exist_ok=True)
        compilation.tidy(folder)
        os.environ[compilation.OWN_FOLDER] = str(folder)  # of the workers, and of what tests start
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    jax.config.update("jax_compilation_cache_dir", os.environ[compilation.OWN_FOLDER])
    least = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def pytest_collection_modifyitems(items):
    place = {f"tests/{name}.py": i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A run directory with random weights."""
    from support import tiny_run

    return tiny_run.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    import progemu_jax

    return progemu_jax.load(tiny_folder)
