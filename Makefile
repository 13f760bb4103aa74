# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo
PYTEST ?=
WORKERS ?= auto

# Where torch comes from. Empty: PyTorch's CPU wheels where no GPU is seen (.ci/install), else what pip finds.
TORCH_INDEX ?=

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
$(VENV)/.complete: pyproject.toml constraints.txt | moved
	@PYTHON="$(PYTHON)" sh .ci/make-venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python .ci/install local dev
	@touch $@

# A checkout that was moved or copied with its .venv goes on working.
.PHONY: moved
moved:
	@if [ -f $(VENV)/pyvenv.cfg ]; then $(PYTHON) .ci/move-venv $(VENV); fi

# The documentation site, in site/, built strictly: a link that leads nowhere is an error.
.PHONY: docs
docs: venv
	@$(BIN)/python .ci/run-toml
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) $(DEMO) build dist site *.egg-info
