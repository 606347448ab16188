# Each target sets itself up in .venv; python3 (3.11 or newer) and make are all that is needed.
# PYTHON=... picks another one.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
READY := .venv/.ready
TORCH := 2.13.0

.PHONY: demo test test-all lint fuzz audit lock venv

demo: venv  ## colour rendered sample frames; the page to look at is out/demo/gallery.html
	$(BIN)/cmmfnet demo

test: venv  ## the tests of every day, one process a core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-all: venv  ## the slow ones, too: exports, processes that are killed, trainings of two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fuzz: venv  ## 40 minutes of coverage-guided fuzzing; findings end a run and are kept in out/fuzz
	$(PIP) atheris
	$(BIN)/python benchmarks/fuzz.py thermal --seconds 1200
	$(BIN)/python benchmarks/fuzz.py camera --seconds 600
	$(BIN)/python benchmarks/fuzz.py model --seconds 300
	$(BIN)/python benchmarks/fuzz.py recipe --seconds 300

audit: venv  ## known weaknesses of the versions of the lock file; needs PyPI's own service
	$(PIP) pip-audit
	@$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off -r requirements.lock || { \
	  echo 'audit: failed. After "not found on PyPI" or "ConnectionError" nothing was audited: this machine reaches no service of' \
	    'known weaknesses (a mirror of PyPI has none); run it where pypi.org answers. Else they are listed above.' >&2; exit 1; }

lock: venv  ## requirements.lock anew: the versions that every target installs
	$(PIP) uv
	echo torch==$(TORCH) >.venv/torch.txt
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --quiet \
	  --constraint .venv/torch.txt --no-annotate --no-header --upgrade --output-file requirements.lock
	sed -i -E '/^(nvidia-|cuda-|triton)/d' requirements.lock

venv: $(READY)

# Where there is no NVIDIA GPU, torch is pinned first, since a wider requirement may bring gigabytes of CUDA libraries along; and
# all versions are those of the lock file, with which pip needs one minute in place of three.
$(READY): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "cmmfnet needs Python 3.11 or newer; found $$($(PYTHON) --version). Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing into .venv (a few minutes the first time)"
	@if nvidia-smi >/dev/null 2>&1; then $(PIP) 'torch>=2.6' && $(PIP) -e '.[dev]'; \
	else $(PIP) torch==$(TORCH) && $(PIP) -e '.[dev]' -c requirements.lock; fi
	@touch $@
