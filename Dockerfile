# The project with JAX for NVIDIA GPUs: launch/image.sh REGISTRY/NAME:TAG builds it and pushes it to your own registry.
#
#   docker run --rm --gpus all --volume "$PWD/runs:/runs" --env OUT=/runs IMAGE make gpu PYTHON=.venv/bin/python
#   docker run --rm --gpus all --volume "$PWD/runs:/runs" IMAGE \
#     .venv/bin/python -m progemu_jax.main --config=configs/phantom.py --workdir=/runs/phantom
#
# CUDA's libraries come as wheels with jax[cuda12]; of the machine it needs the driver and NVIDIA's container toolkit.
FROM nvidia/cuda:12.6.3-base-ubuntu24.04

RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3 python3-venv make \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /progemu-jax
RUN python3 -m venv .venv

# What the lock holds first: it changes less often than the code.
COPY requirements.lock ./
RUN .venv/bin/pip install --no-cache-dir --require-hashes -r requirements.lock

COPY pyproject.toml setup.py LICENSE README.md Makefile ./
COPY progemu_jax progemu_jax
COPY data data
COPY eval eval
COPY configs configs
COPY benchmarks benchmarks
COPY launch launch
COPY tests/support tests/support
# The versions of the lock stay: jax[cuda12] adds the plugin of the jax that is there.
RUN .venv/bin/pip install --no-cache-dir --no-build-isolation --editable ".[cuda]"

CMD [".venv/bin/python", "-m", "progemu_jax.main", "--help"]
