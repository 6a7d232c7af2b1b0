# make demo: set-up, then the main job on the built-in phantom cohort. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
PARITY_EVAL ?= .venv-parity-eval
JOBS ?= 2
PY := $(VENV)/bin/python
STAMP := $(VENV)/.progemu-installed

# One thread a test process: pytest-xdist runs JOBS of them.
TEST_FLAGS := --xla_cpu_multi_thread_eigen=false --xla_force_host_platform_device_count=8
TEST_ENV := JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 XLA_FLAGS="$(TEST_FLAGS)"
# Little optimised: compilation is most of what the tests cost, and what they state holds for any machine code. The
# slow tests and the live comparisons run what users run; `make test FAST=` does so with all of them.
FAST ?= --xla_backend_optimization_level=0

# Of make fuzz.
CASES ?= 20000
SEED ?= 0

PARITY_VENV ?= .venv-parity
BEAM_VENV ?= .venv-beam
PARITY_PY := $(PARITY_VENV)/bin/python
AUDIT_VENV ?= .venv-audit
APP_VENV ?= .venv-app
DOCS_VENV ?= .venv-docs
TOOLS ?= .venv-tools
PYTHONS ?= python3.11 python3.12 python3.13
UV ?= uv
PIP := -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes
EDITABLE := $(PIP) --no-deps --no-build-isolation -e .

.PHONY: help setup try app demo demo-quick phantom course tables test chromium test-app docs notebook audit lock types \
  package soak fuzz test-beam bench-cohort parity-eval coverage known-systems parity bench-vq bench-decode bench-small \
  bench-train bench-diffusion bench-convert gpu lint format clean

help:
	@echo "make setup       virtual environment in $(VENV) from the hashed lock (Python 3.11 or newer)"
	@echo "make try         set-up, then the model in the package on five held-out phantom patients: runs/try/index.html;"
	@echo "                 MODEL=runs/demo: a run's model instead"
	@echo "make app         a page in the browser that edits films, in $(APP_VENV): http://127.0.0.1:7860; MODEL=DIR, PORT=N"
	@echo "make demo        set-up, then cohort to judged counterfactuals: runs/demo/report/index.html"
	@echo "make demo-quick  the same in the smallest size: runs/demo-quick"
	@echo "make phantom     the same cohort at full size: runs/phantom (110 minutes on 2 cores)"
	@echo "make course      a phantom with a course, intervals and earlier films: runs/phantom_course"
	@echo "make test        set-up, then the tests (JOBS=$(JOBS) processes)"
	@echo "make test-app    that page in chromium (which it installs, on Debian and as root), at most 5 minutes"
	@echo "make docs        the pages of docs/ and the API as a site, in $(DOCS_VENV): runs/site/index.html"
	@echo "make notebook    the notebook's cells in a new environment of PYTHON=$(PYTHON), and again without bfloat16, as on a T4"
	@echo "make audit       known faults of the packages in requirements.lock, in $(AUDIT_VENV) (asks an advisory service)"
	@echo "make lock        the locks anew, by UV=$(UV); what they hold stays where it fits"
	@echo "make types       types of what users call, by mypy, in $(TOOLS)"
	@echo "make package     sdist and wheel in dist/, checked by twine; then the wheel in a venv of each Python of"
	@echo "                 PYTHONS=\"$(PYTHONS)\" that is here: pictures by the model in it, runs/wheel-PYTHON"
	@echo "make soak        100 kills in every stage and command (at most 60 minutes; the same command goes on), and the"
	@echo "                 other slow tests"
	@echo "make fuzz        20,000 edits of what every reader reads, values and bytes, kept in runs/fuzz; goes on when cut;"
	@echo "                 CASES=300: fewer; SEED=7: others; CASE=NAME:SEED:NUMBER: one again"
	@echo "make test-beam   the data stage on Apache Beam, in $(BEAM_VENV)"
	@echo "make bench-cohort 10,000 synthetic studies of two layouts to shards, with kill -9 on the way; 1,000 of DICOM"
	@echo "make parity-eval every metric and the VQGAN against independent libraries, in $(PARITY_EVAL) (Python 3.11);"
	@echo "                 CHEXGENBENCH=DIR, TEA=DIR: also against the public code of these"
	@echo "make coverage    2,000 simulated cohorts: do 95 % intervals hold the truth? (slow)"
	@echo "make known-systems  systems of known faults through the evaluation, on runs/phantom"
	@echo "make parity      compares with live PyTorch, in $(PARITY_VENV) (Python 3.11); EMU3=DIR adds the public Emu3 code"
	@echo "make tables      MedJourney's tables 1 and 2 on the phantom, resumable: runs/tables/report/index.html"
	@echo "make bench-diffusion  denoising steps beside Diffusers' on the same weights"
	@echo "make bench-vq    image tokenizer beside transformers' on the same weights; bench-convert: 4.3 GB in and out"
	@echo "make bench-decode sampling beside transformers' Emu3 with the reference's grammar callback, same weights"
	@echo "make bench-small one training step of the demo's two models beside an earlier commit and PyTorch, on a CPU"
	@echo "make bench-train one training step beside transformers' Emu3: speed and memory (Python 3.11, $(PARITY_VENV))"
	@echo "make gpu         speeds on one NVIDIA GPU in at most 8 minutes, by PYTHON=$(PYTHON), which has JAX for CUDA; needs no"
	@echo "                 set-up; SIZE=small: the same with tiny models, on any device: benchmarks/results/gpu-DEVICE.jsonl"
	@echo "make lint        ruff, nothing is changed; make format changes"
	@echo "make clean       removes build products and caches; keeps $(VENV) and runs/"

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) $(LOCKED) -r requirements.lock
	$(PY) $(EDITABLE)
	touch $@

try: setup
	$(PY) -m progemu_jax.gallery --out=runs/try $(if $(MODEL),--model=$(MODEL))

# Gradio wants an older pillow: a venv and a lock of its own.
app: $(APP_VENV)/.progemu-installed
	$(APP_VENV)/bin/python -m progemu_jax.app $(if $(MODEL),--model=$(MODEL)) $(if $(PORT),--port=$(PORT))

$(APP_VENV)/.progemu-installed: requirements-app.lock pyproject.toml setup.py
	test -x $(APP_VENV)/bin/python || $(PYTHON) -m venv $(APP_VENV)
	$(APP_VENV)/bin/python $(LOCKED) -r requirements-app.lock
	$(APP_VENV)/bin/python $(EDITABLE)
	touch $@

# Huge pages: a fifth less CPU time, otherwise spent in page faults.
demo demo-quick phantom course tables: export GLIBC_TUNABLES := glibc.malloc.hugetlb=1

demo: setup
	$(PY) -m progemu_jax.main --config=configs/demo.py --workdir=runs/demo

demo-quick: setup
	$(PY) -m progemu_jax.main --config=configs/demo_quick.py --workdir=runs/demo-quick

phantom: setup
	$(PY) -m progemu_jax.main --config=configs/phantom.py --workdir=runs/phantom

course: setup
	$(PY) -m progemu_jax.main --config=configs/phantom_course.py --workdir=runs/phantom_course
	$(PY) benchmarks/expected.py --run=runs/phantom_course

tables: setup
	$(PY) -m progemu_jax.tables --workdir=runs/tables

test: setup
	JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 XLA_FLAGS="$(TEST_FLAGS) $(FAST)" $(PY) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder \
	  -m "not parity and not slow and not beam and not browser"

chromium:
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update --quiet && apt-get install --yes --no-install-recommends chromium; } || \
	  { echo "error: no chromium here, and only root on Debian can install it: apt-get install chromium" >&2; exit 2; }

test-app: chromium $(APP_VENV)/.progemu-installed
	timeout 300 $(APP_VENV)/bin/python -m pytest -m browser tests/app

# Not --quiet, which drops what --strict counts. The variable: no advertisement of the theme's makers.
docs: $(DOCS_VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

$(DOCS_VENV)/.installed: requirements-docs.lock
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python $(LOCKED) -r requirements-docs.lock
	touch $@

# As on Colab: a folder with the checkout in it, a Python with nothing in it.
notebook:
	rm -rf runs/notebook
	mkdir -p runs/notebook/progemu-jax
	git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t runs/notebook/progemu-jax
	$(PYTHON) -m venv runs/notebook/venv
	cd runs/notebook && for without in "" --refuse-bfloat16; do rm -rf counterfactual; \
	  MPLBACKEND=Agg PROGEMU_CACHE=$$PWD/cache venv/bin/python progemu-jax/tests/support/run_notebook.py \
	  progemu-jax/notebooks/sample.ipynb $$without || exit; done

# pip-audit ends with 1 for what it finds and for what goes wrong; what it finds is on its standard output.
audit: $(AUDIT_VENV)/.installed
	@cd $(AUDIT_VENV) && bin/pip-audit --strict --disable-pip --progress-spinner=off -r $(CURDIR)/requirements.lock >found 2>log; \
	  status=$$?; cat found; if test $$status -eq 0; then tail -n 1 log; elif ! test -s found; then \
	  echo "error: requirements.lock was not audited, no answer from the advisory service ($(AUDIT_VENV)/log)" >&2; exit 2; \
	  else exit 1; fi

$(AUDIT_VENV)/.installed: requirements-audit.lock
	test -x $(AUDIT_VENV)/bin/python || $(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python $(LOCKED) -r requirements-audit.lock
	touch $@

# For every platform and without addresses. Builds of torch differ from machine to machine: its line in the list of an
# environment pins the version, and the lock leaves it out with what its builds bring along.
LOCK = $(UV) pip compile --quiet --universal --python-version=3.11 --generate-hashes --no-header --no-annotate
BUILDS := torch torchvision triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti \
  cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink \
  nvshmem-cu13 nvtx)
torch = $(shell grep -E '^torch(vision)?==' $(1))

lock:
	$(LOCK) pyproject.toml --extra=dev --extra=dicom --extra=hub --extra=llm -o requirements.lock
	test -f requirements-beam.lock || cp requirements.lock requirements-beam.lock
	$(LOCK) pyproject.toml --extra=dev --extra=dicom --extra=llm --extra=beam -o requirements-beam.lock
	test -f requirements-app.lock || cp requirements.lock requirements-app.lock
	$(LOCK) pyproject.toml --extra=dev --extra=dicom --extra=app --extra=app-test -o requirements-app.lock
	for name in parity parity-eval; do cp requirements.lock requirements-$$name.lock; \
	  $(LOCK) requirements-$$name.txt $(addprefix --no-emit-package=,$(BUILDS)) -o requirements-$$name.lock || exit; done
	echo "pip-audit>=2.10" | $(LOCK) - -o requirements-audit.lock
	printf "mkdocs-material>=9.7\nmkdocstrings[python]>=1.0\nruff\n" | $(LOCK) - -o requirements-docs.lock
	printf '%s\n' "mypy>=2.4" "twine>=7.0" "uv>=0.13" | $(LOCK) - -o requirements-tools.lock

$(TOOLS)/.installed: requirements-tools.lock
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python $(LOCKED) -r requirements-tools.lock
	touch $@

# mypy knows nothing of setup.py: it sees the folders as an installed package has them.
types: setup $(TOOLS)/.installed
	rm -rf build/types && mkdir -p build/types/progemu_jax
	ln -s $(CURDIR)/progemu_jax/* $(addprefix $(CURDIR)/,data eval configs) build/types/progemu_jax/
	$(TOOLS)/bin/mypy --python-executable=$(PY)

# Pythons that are not here are said and passed over.
package: setup $(TOOLS)/.installed
	rm -rf dist
	$(TOOLS)/bin/uv build --quiet --no-build-isolation --python=$(PY) --out-dir=dist
	$(TOOLS)/bin/twine check --strict dist/*.whl dist/*.tar.gz
	for name in $(PYTHONS); do venv=.venv-wheel-$$name; \
	  python=$$($$name -c 'import sys; print(sys.executable)' 2>/dev/null) || \
	    { echo "$$name is not here: the wheel was not run there" >&2; continue; }; \
	  test -x $$venv/bin/python || $(TOOLS)/bin/uv venv --quiet --python=$$python $$venv || exit; \
	  $(TOOLS)/bin/uv pip sync --quiet --python=$$venv --require-hashes requirements.lock && \
	  $(TOOLS)/bin/uv pip install --quiet --python=$$venv --no-deps dist/*.whl && \
	  (cd dist && ../$$venv/bin/progemu-jax try --patients=1 --out=../runs/wheel-$$name) || exit; done

soak: setup
	$(TEST_ENV) $(PY) -m pytest -m slow

fuzz: setup
	PYTHONPATH=tests $(PY) -m support.fuzz --work=runs/fuzz --jobs=$(JOBS) --seed=$(SEED) \
	  $(if $(CASE),--case=$(CASE),--cases=$(CASES))

# Apache Beam lowers protobuf and pyarrow: a venv and a lock of its own.
test-beam: $(BEAM_VENV)/.progemu-installed
	$(TEST_ENV) $(BEAM_VENV)/bin/python -m pytest tests/data/test_beam.py

$(BEAM_VENV)/.progemu-installed: requirements-beam.lock pyproject.toml
	test -x $(BEAM_VENV)/bin/python || $(PYTHON) -m venv $(BEAM_VENV)
	$(BEAM_VENV)/bin/python $(LOCKED) -r requirements-beam.lock
	$(BEAM_VENV)/bin/python $(EDITABLE)
	touch $@

bench-cohort: setup
	$(PY) benchmarks/cohort.py --layout=mimic_cxr --work=runs/bench-cohort --kills=3
	$(PY) benchmarks/cohort.py --layout=chexpertplus --work=runs/bench-cohort
	$(PY) benchmarks/cohort.py --layout=mimic_cxr_dicom --work=runs/bench-cohort --studies=1000

# The libraries that the metrics are compared with pull in PyTorch: a venv of their own, over the same lock.
parity-eval: $(PARITY_EVAL)/.progemu-installed
	JAX_PLATFORMS=cpu OMP_NUM_THREADS=1 $(if $(CHEXGENBENCH),CHEXGENBENCH=$(CHEXGENBENCH)) $(if $(TEA),TEA=$(TEA)) \
	  $(PARITY_EVAL)/bin/python -m pytest -m parity tests/parity/test_eval.py tests/parity/test_protocols_live.py \
	  tests/parity/test_vqgan_live.py
	$(PARITY_EVAL)/bin/python -m pytest tests/eval/test_tables.py

$(PARITY_EVAL)/.progemu-installed: requirements.lock requirements-parity-eval.txt requirements-parity-eval.lock
	test -x $(PARITY_EVAL)/bin/python || $(PYTHON) -m venv $(PARITY_EVAL)
	$(PARITY_EVAL)/bin/python $(LOCKED) -r requirements.lock
	$(PARITY_EVAL)/bin/python $(PIP) $(call torch,requirements-parity-eval.txt)
	$(PARITY_EVAL)/bin/python $(LOCKED) --no-deps -r requirements-parity-eval.lock
	$(PARITY_EVAL)/bin/python $(EDITABLE)
	touch $@

coverage: setup
	OMP_NUM_THREADS=1 $(PY) benchmarks/coverage.py

known-systems: setup
	$(PY) benchmarks/known_systems.py --run=runs/phantom

$(PARITY_VENV)/.progemu-installed: requirements.lock requirements-parity.txt requirements-parity.lock pyproject.toml setup.py
	test -x $(PARITY_PY) || $(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_PY) $(LOCKED) -r requirements.lock
	$(PARITY_PY) $(PIP) $(call torch,requirements-parity.txt)
	$(PARITY_PY) $(LOCKED) --no-deps -r requirements-parity.lock
	$(PARITY_PY) $(EDITABLE)
	touch $@

parity: $(PARITY_VENV)/.progemu-installed
	$(TEST_ENV) $(if $(EMU3),EMU3=$(EMU3)) $(PARITY_PY) -m pytest -m parity -s tests/parity/test_emu3_live.py \
	  tests/parity/test_diffusion_live.py tests/parity/test_features_live.py

bench-vq: $(PARITY_VENV)/.progemu-installed
	$(PARITY_PY) benchmarks/vq.py

bench-decode: $(PARITY_VENV)/.progemu-installed
	$(PARITY_PY) benchmarks/decode.py

bench-small: $(PARITY_VENV)/.progemu-installed
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(PARITY_PY) benchmarks/small.py --torch=$(PARITY_PY)

bench-train: $(PARITY_VENV)/.progemu-installed
	$(PARITY_PY) benchmarks/train.py

bench-diffusion: $(PARITY_VENV)/.progemu-installed
	$(PARITY_PY) benchmarks/diffusion.py

bench-convert: setup
	$(PY) benchmarks/convert.py

# No set-up: the lock holds JAX for CPU, and the script needs no installed project.
gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(SIZE),--size=$(SIZE)) $(if $(ONLY),--only=$(ONLY))

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
