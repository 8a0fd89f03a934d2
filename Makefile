# Every target makes .venv by itself when it is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint format docs dist clean

demo: .venv/installed
	$(BIN)/cutmix demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

dist: .venv/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The stamp is written last, so that an interrupted installation is started again. torchattacks, an oracle of the tests,
# asks for a requests that other packages do not go with; without it, its test is skipped with the reason.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "cutmix needs Python 3.11 or newer; name one with make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,docs]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchattacks || true
	touch $@

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache build dist docs/reference/[!i]*.md *.egg-info
