# make demo: from raw data to a calibrated ensemble. make test: every test. Both set everything up.
PYTHON ?= python3
BIN := .venv/bin
DEMO := demo
SAMPLE := datasets/ethanol_gfn2

.PHONY: install demo test lint bench clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed $(DEMO)/ethanol.zarr/manifest.json
	$(BIN)/raypot tune search_spaces/quick.toml --data $(DEMO)/ethanol.zarr --out $(DEMO)/study
	$(BIN)/raypot ensemble $(DEMO)/study
	$(BIN)/raypot evaluate $(DEMO)/study/ensemble.safetensors $(DEMO)/ethanol.zarr
	$(BIN)/raypot report $(DEMO)/study

$(DEMO)/ethanol.zarr/manifest.json: | .venv/installed
	mkdir -p $(DEMO)
	$(BIN)/raypot data import $(SAMPLE)/ethanol_gfn2.xyz.gz $(DEMO)/ethanol.zarr

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf .venv $(DEMO) build *.egg-info
