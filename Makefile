# make demo   create .venv and generate a video from a prompt
# make test   run the tests
# make check  run the other checks of CI: style, types, layers
# make dev    create .venv for development, with git hooks
# make fuzz   read 20,000 damaged files: every reader succeeds or refuses in one line
# make evidence write docs/evidence/video-diffusion.md: trains, samples and measures what is missing (hours)
# make images write the images of README (that of the studio needs Chromium); also called make pictures
VENV ?= .venv
PYTHON ?= python3
JOBS ?= 2
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
GROUND := pyproject.toml constraints.txt

.PHONY: demo test check fuzz dev evidence images pictures
.DELETE_ON_ERROR:

demo: $(VENV)/.core
	$(BIN)/kinema generate "a red ball rolls right" -o ball.mp4 --overwrite

# One thread per worker: the tests' tensors are small, and JOBS workers already use all cores. Bytecode is kept: else
# every worker rewrites all tests, and each of some hundred child processes compiles the package.
test: $(VENV)/.test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) $(ARGS)

fuzz: $(VENV)/.test
	KINEMA_FUZZ=20000 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) tests/fuzz

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

dev: $(VENV)/.test
	$(PIP) -e '.[dev]'
	$(BIN)/pre-commit install

evidence: $(VENV)/.test
	$(BIN)/python -W ignore -m benchmarks.evidence $(ARGS)

images pictures: $(VENV)/.test
	$(BIN)/python tools/images.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(GROUND) | $(BIN)/python
	$(PIP) -e .
	touch $@

$(VENV)/.test: $(GROUND) | $(BIN)/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.core
