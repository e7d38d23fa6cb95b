# On a fresh Linux machine with Python 3.11 to 3.13 and make: `make demo` or `make test`, nothing before them.
# PYTHON=/path/to/python picks the interpreter that makes .venv.

BIN := .venv/bin
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow check format constraints clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed ## make a small data set, train TSN and TEI on it, write demo/report.html
	$(BIN)/python -m vireo demo

test: check ## the checks, then all tests but the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: .venv/.installed ## the slow tests (training to a given accuracy)
	$(BIN)/python -m pytest -m slow --timeout 3600

check: .venv/.installed ## formatting, lint, types, layers
	$(BIN)/ruff format --check --quiet . || { echo "run 'make format'"; exit 1; }
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy --strict vireo
	$(BIN)/lint-imports --no-logo

format: .venv/.installed ## format the code and mend what ruff can
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format --quiet .

# Names, versions and hashes, no addresses; holds for Python 3.11 to 3.13 on x86_64 and aarch64.
# One version of a package for all Pythons, so that they see the same types and numbers.
# uv and hatchling are in it because setting up .venv installs them.
constraints: .venv/.installed ## resolve the newest versions into constraints.txt
	printf '%s\n' uv hatchling > .venv/tools.in
	PATH="$$PATH:$(CURDIR)/.venv/uv/bin" uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-emit-index-url --no-emit-find-links --no-annotate --no-header \
		--all-extras pyproject.toml .venv/tools.in --output-file constraints.txt

clean: ## remove .venv and everything that runs and checks wrote, except runs/
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt tools/venv.sh
	@./tools/venv.sh
