PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One pin file for 3.11 and newer, one for 3.10, whose newest numpy and onnxruntime are older.
PINS := $(shell $(PYTHON) -c "import sys; print('constraints-py310.txt' if sys.version_info < (3, 11) else 'constraints.txt')")

.PHONY: demo test check format install install-dev clean

demo: install
	$(BIN)/edge demo --out work/demo

test: check

check: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	OMP_WAIT_POLICY=PASSIVE $(BIN)/pytest -n 2 --dist worksteal # threads that wait leave the core to the other worker

format: install-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml $(PINS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[cpu,convert,train]'
	touch $@

# The stubs want tensorrt itself, and beside the real packages they would look like it: hence --no-deps and a folder of their own.
$(VENV)/.installed-dev: $(VENV)/.installed typings/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS) -e '.[cpu,convert,train,track,sign,nvml,cuda,tensorrt-rtx,fleet,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/tensorrt-stubs -r typings/requirements.txt
	touch $@

clean:
	rm -rf $(VENV) work dist build
