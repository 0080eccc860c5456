# make demo    a trained model answers questions about pictures and a clip
# make test    everything that is tested, in a few minutes
# make lint    ruff and mypy
# make bench   vlmkit and transformers side by side, written to docs/benchmarks.md; GPU=1 on a GPU, QUICK=1 in minutes
# make plugins plugins and vlmkit from wheels, in a fresh environment: checked, tested, trained with
# make vllm    a real vLLM answers with our tokens; makes .venv-vllm, some gigabytes
# make clean   removes what make made
#
# Needs Python 3.11 or newer and make; the rest goes into .venv. Another Python: make test PYTHON=/path/to/python

SHELL := /bin/sh
FITS = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 /usr/bin/python3; do \
	$$p -c "$(FITS)" >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
WORKERS ?= auto

.PHONY: demo test lint bench plugins vllm clean
.NOTPARALLEL:
.DELETE_ON_ERROR:

demo: .venv/ready
	$(BIN)/python examples/demo.py

test: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready-dev
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/run.py $(if $(QUICK),--quick) $(if $(GPU),--device cuda)

plugins: .venv/ready-dev
	OMP_NUM_THREADS=1 $(BIN)/python tests/opt_in/plugins.py --borrow $(BIN)/../lib/python3*/site-packages

vllm: .venv/ready-dev .venv-vllm/ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/opt_in/vllm_same.py .venv-vllm/bin/python

# `.venv/broken` stands while an installation runs. Found by the next one, it means: that one never finished, start anew.
define install
	@test -n "$(PYTHON)" || { echo "make: no Python of 3.11 or newer with venv was found; name one: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
	@if [ -e .venv/broken ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then rm -rf .venv; fi
	@test -d .venv || { mkdir .venv && touch .venv/broken && "$(PYTHON)" -m venv .venv; }
	@touch .venv/broken
	@echo "installing $(1) into .venv; the first time it takes some minutes"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt --editable "$(1)"
	@rm .venv/broken
endef

.venv/ready: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch .venv/ready $@

# Compiled for CUDA where registries have nothing else, and not needed: transformers would stumble over them.
.venv-vllm/ready: tests/opt_in/vllm.txt
	rm -rf .venv-vllm
	"$(PYTHON)" -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install -q --disable-pip-version-check -r $<
	.venv-vllm/bin/python -m pip uninstall -q -y torchaudio torchcodec
	@touch $@

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
