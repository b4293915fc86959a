# make setup   a virtual environment in .venv with hopformer in it
# make chat    chat with the bundled demo model (MODEL=... for another)
# make test    every test that needs no GPU: those of a second, then the slow ones; beside them, with the processor time that
#              they leave, kernels in Triton's interpreter, and compiled ahead of time
# make test-nat   every test of answers through NAT, of which make test runs a few; needs root
# make check   format, lint, types
# make demo-cluster   three nodes on this machine, one of which is killed in the middle of an answer
# make bench   prefill and decode speed of MODEL on this machine, beside transformers

PYTHON ?= $(or $(shell command -v python3.11 || command -v python3.12 || command -v python3.13),python3.11)
MODEL ?= demo
VENV := .venv
BIN := $(VENV)/bin
ROOMS := kernels llama net cli bench

.PHONY: setup chat test test-cpu test-triton test-nat check demo-cluster bench clean

setup: $(VENV)/.setup

chat: $(VENV)/.setup
	@$(BIN)/hopformer chat $(MODEL)

test: $(VENV)/.setup-test
	@$(MAKE) --no-print-directory -j2 test-cpu test-triton

test-cpu: $(VENV)/.setup-test
	$(BIN)/python -m pytest -m "not slow and not interpreter and not gpu and not aot"
	$(BIN)/python -m pytest -m "slow and not interpreter and not gpu and not aot and not nat"

# In two processes, as the interpreter and the compiler are chosen when Triton is imported; what they print comes at the end
test-triton: $(VENV)/.setup-test
	@{ TRITON_INTERPRET=1 nice -n 19 $(BIN)/python -m pytest tests/unit/kernels -m interpreter && \
	   nice -n 19 $(BIN)/python -m pytest tests/aot -m aot; } >$(VENV)/test-triton.log 2>&1; \
	code=$$?; cat $(VENV)/test-triton.log; exit $$code

test-nat: $(VENV)/.setup-test
	$(BIN)/python -m pytest tests/e2e/test_paths_through_nat.py tests/unit/bench/test_net_command.py::test_rows_of_nats_say_who_can_meet

# mypy wants the package under its own name, whatever this folder is called
check: $(VENV)/.setup-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@mkdir -p $(VENV)/types && ln -sfn ../.. $(VENV)/types/hopformer
	cd $(VENV)/types && ../bin/mypy --config-file ../../pyproject.toml -m hopformer -m hopformer.errors -m hopformer.__main__ $(ROOMS:%=-p hopformer.%)

demo-cluster: $(VENV)/.setup
	@$(BIN)/python examples/demo_cluster.py

bench: $(VENV)/.setup-test
	$(BIN)/hopformer bench decode $(MODEL)

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "hopformer needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12, for one" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# stdout stays the program's own, so that `echo "What is 2 plus 3?" | make chat` prints an answer and nothing else
$(VENV)/.setup: pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) (the first time takes a few minutes)" >&2
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e . >&2
	@touch $@

$(VENV)/.setup-test: pyproject.toml | $(BIN)/python
	@echo "setting up $(VENV) with the test tools (the first time takes a few minutes)" >&2
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]' >&2
	@touch $(VENV)/.setup $@
