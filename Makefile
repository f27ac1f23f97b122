# Every target does its own set-up. `make demo` and `make test` are all a fresh machine needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test test-browser hazards lint bench clean

venv: $(VENV)/.installed

# torch first and pinned: an open resolver would fetch gigabytes of CUDA.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: venv
	$(BIN)/python -m pytest -m "not slow and not network and not browser" --durations=5
	$(BIN)/python -m pytest -m "slow and not network and not browser" --durations=5

# The report page in a headless Chromium. Debian's is installed where it is missing and we may.
test-browser: venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	@test -n "$$CHROMIUM" || command -v chromium google-chrome >/dev/null || { test "$$(id -u)" = 0 && \
	  command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } || \
	  { echo "no Chromium: install it (Debian: apt-get install chromium) or set CHROMIUM to its path" >&2; exit 1; }
	$(BIN)/python -m pytest tests/browser --durations=5

# One row per known fault, with its figure.
hazards: venv
	$(BIN)/python scripts/hazards.py

demo: venv
	$(BIN)/python scripts/demo.py

bench: venv
	$(BIN)/sparseg bench model --preset btcv --json benchmarks/latest.json

clean:
	rm -rf $(VENV) demo runs build dist
