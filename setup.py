"""Package mapping: the three top-level folders `data/`, `eval/`, `configs/` are subpackages of `progemu_jax`."""

from setuptools import find_packages, setup

_FOLDERS = ("data", "eval", "configs")


def _packages():
    found = [p for p in find_packages(include=["progemu_jax", "progemu_jax.*"])]
    for folder in _FOLDERS:
        found.append(f"progemu_jax.{folder}")
        found += [f"progemu_jax.{folder}.{p}" for p in find_packages(folder)]
    return found


setup(
    packages=_packages(),
    package_dir={"progemu_jax": "progemu_jax", **{f"progemu_jax.{folder}": folder for folder in _FOLDERS}},
)
