"""Package mapping: the three top-level rooms `data/`, `eval/`, `configs/` are subpackages of `progemu_jax`."""

from setuptools import find_packages, setup

_ROOMS = ("data", "eval", "configs")


def _packages():
    found = [p for p in find_packages(include=["progemu_jax", "progemu_jax.*"])]
    for room in _ROOMS:
        found.append(f"progemu_jax.{room}")
        found += [f"progemu_jax.{room}.{p}" for p in find_packages(room)]
    return found


setup(
    packages=_packages(),
    package_dir={"progemu_jax": "progemu_jax", **{f"progemu_jax.{room}": room for room in _ROOMS}},
)
