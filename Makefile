# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST ?=
WORKERS ?= auto

# On a machine without a GPU, TORCH_INDEX=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA libraries.
TORCH_INDEX ?=
TORCH_FROM := $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX),)

.PHONY: demo test test-cluster lint format modules venv clean

demo: venv
	@$(BIN)/smalti demo $(DEMO)

test: venv
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(PYTEST)

# A real Slurm, a real Apptainer and a real image on a Debian 12 machine; as root. TORCH_INDEX as above.
test-cluster: venv
	@TORCH_INDEX="$(TORCH_INDEX)" tests/cluster/run $(PYTEST)

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: venv
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# The list of modules in the documents, from their docstrings.
modules:
	@$(PYTHON) .ci/architecture

venv: $(VENV)/.complete

# The stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/.complete: pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" sh .ci/make-venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt $(TORCH_FROM) torch
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[local,dev]'
	@touch $@

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
