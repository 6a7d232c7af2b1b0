"""Tests run on CPU, on one thread a process (pytest-xdist supplies the parallelism), with 8 fake devices.

No persistent compilation cache: on CPU it stores machine code for the exact processor, which a shared or
moved checkout turns into crashes, and the tests' models compile in seconds.
"""

import os


def _flag(text):
    flags = os.environ.get("XLA_FLAGS", "")
    if text.split("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {text}".strip()


# Before anything imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("PROGEMU_JAX_COMPILATION_CACHE", "off")
_flag("--xla_force_host_platform_device_count=8")
_flag("--xla_cpu_multi_thread_eigen=false")
