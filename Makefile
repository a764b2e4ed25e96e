# Everything a newcomer or CI needs. Each target sets itself up; only python3 (3.11+), make and gcc are presumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PXD := $(shell find src/xenvirtio -name '*.pxd')
ENGINE := $(PXD) $(wildcard $(PXD:.pxd=.py)) src/xenvirtio/_build.py setup.py pyproject.toml
SECONDS ?= 300

.PHONY: help demo test check bench fuzz lab lab-test lab-bench clean

help:
	@echo "make demo       the main job on an emulated Xen host: three guests, a crash, a kill -9, every byte verified"
	@echo "make test       the tests, with the compiled engine and interpreted"
	@echo "make check      ruff, mypy --strict, the import rule, spec coverage up to date"
	@echo "make bench      the engine alone, on this machine"
	@echo "make fuzz       the fuzzers for longer (SECONDS=300 for each)"
	@echo "make lab        build real Xen, Linux and root images for QEMU (about 10 minutes, once)"
	@echo "make lab-test   the scenarios on real Xen in QEMU (SKIP='NAME ...' leaves some out)"
	@echo "make lab-bench  requests per second on real Xen in QEMU"

$(VENV)/.installed: $(ENGINE)
	@tools/prepare_host.sh $(PYTHON)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cli]'
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@tools/prepare_host.sh $(PYTHON) dev
	$(PIP) --editable '.[cli,lab,dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/xenvirtio demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest
	XENVIRTIO_ENGINE=interpreted $(BIN)/python -m pytest

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py
	$(BIN)/python tools/spec_coverage.py --check

bench: $(VENV)/.installed
	$(BIN)/python bench/engine.py

fuzz: $(VENV)/.dev
	XENVIRTIO_FUZZ_SECONDS=$(SECONDS) $(BIN)/python -m pytest tests/fuzz

lab: $(VENV)/.dev
	$(BIN)/xenvirtio lab build --install-tools

lab-test: lab
	$(BIN)/xenvirtio lab test $(foreach name,$(SKIP),--skip $(name))

lab-bench: lab
	$(BIN)/xenvirtio lab bench

clean:
	rm -rf $(VENV) build src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src -name '*.so' -delete
