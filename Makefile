# Two commands: `make train` and `make test`. A second `make` does not install again.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: train test test-slow test-oldest check docs locks install clean

train: .venv/installed
	$(BIN)/python -m sslm.train $(ARGS)

# three workers suit two cores: many tests wait, for other processes or a time to pass
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 -m slow --durations 25

# The everyday tests with the oldest versions that pyproject.toml allows. What they warn of as deprecated is no failure.
OLDEST := .venv-oldest/bin
test-oldest:
	test -x $(OLDEST)/python || $(PYTHON) -m venv .venv-oldest
	$(OLDEST)/python -m pip install --quiet uv
	$(OLDEST)/uv pip install --quiet --python $(OLDEST)/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 $(OLDEST)/python -m pytest -n 3 -W default

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck docker/entrypoint.sh slurm/pretrain.sbatch .ci/run

docs: .venv/installed-docs
	$(BIN)/python docs/make_site.py

# What docker/Dockerfile installs, for its Python: every extra but those of developers. PyPI's torch is the build with CUDA.
EXTRAS := clean deepspeed eval gs lora mlflow quantize s3 tensorboard text-scores trackio
LOCK = $(BIN)/uv pip compile pyproject.toml $(EXTRAS:%=--extra %) --generate-hashes --annotation-style line \
	--upgrade --quiet --custom-compile-command 'make locks' --python-version 3.11 --python-platform x86_64-manylinux_2_28

locks: .venv/installed
	$(BIN)/python -m pip install --quiet uv
	$(LOCK) --torch-backend cpu --output-file docker/requirements-cpu.lock
	$(LOCK) --output-file docker/requirements-cuda.lock

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

clean:
	rm -rf .venv .venv-oldest build site *.egg-info
