# The one place where commands are written: `make` lists them.
# Every target that needs Python packages makes the environment it needs first, once.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter that makes the environments, and where they stand.
PYTHON ?= python3
SERVING_ENV ?= .venv-serving
FULL_ENV ?= .venv
PEERS_ENV ?= .venv-peers
TRITON_ENV ?= .venv-triton
GPU_ENV ?= .venv-gpu
# Triton's Python worker links to the shared libpython of the system: it takes the system's Python.
SYSTEM_PYTHON ?= /usr/bin/python3

# What a command is given beyond its defaults: make train ARGS="--preset tiny"
ARGS ?=
# The model that `serve`, `demo` and `evaluate` use and that `export` writes.
MODEL ?= models/mnist
# Where `stubs` writes.
STUBS_DIR ?= protos

SERVING_STAMP := $(SERVING_ENV)/.stamp
FULL_STAMP := $(FULL_ENV)/.stamp
SERVING_PYTHON := $(SERVING_ENV)/bin/python
FULL_PYTHON := $(FULL_ENV)/bin/python

PROTOS := simple_diffusion/v1/diffusion.proto

# ONNX Runtime sends telemetry from its Linux builds unless told not to.
export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo serve train export quantize half evaluate ablate load bench test fault-test compose-test check format stubs dashboard constraints docs-pictures notebook clean
.PHONY: bench-peers-env bench-peers bench-engine bench-limit bench-startup bench-training bench-gpu bench-report

help: ## List the targets
	@awk '/^# --- / { gsub(/^# --- | -*$$/, ""); section = $$0 } \
	  /^[a-z-]+:.*## / { text = $$0; sub(/^.*## /, "", text); sub(/:.*/, ""); \
	    if (section != shown) printf "\n%s\n", shown = section; \
	    printf "  make %-14s %s\n", $$0, text }' $(MAKEFILE_LIST)
	@printf '\n%s\n' 'Variables, as in: make serve MODEL=models/fashion-mnist ARGS="--port 50052"'
	@printf '  %-19s %s\n' \
	  'ARGS="..."' 'goes to the command behind the target; ARGS=--help lists its flags' \
	  'MODEL=DIR' 'the model to serve, export or evaluate (now $(MODEL))' \
	  'PYTHON=PATH' 'the Python that makes the environments, 3.11 to 3.14 (now $(PYTHON))'

# --- Use it ----------------------------------------------------------------------------------

demo: $(SERVING_STAMP) ## Serve the model, ask it for ten of each digit, write demo.png
	$(SERVING_PYTHON) tools/demo.py --model $(MODEL) $(ARGS)

serve: $(SERVING_STAMP) ## Serve the model over gRPC until Ctrl-C
	$(SERVING_PYTHON) -m serving --model $(MODEL) $(ARGS)

train: $(FULL_STAMP) ## Train a model (ARGS="--help" lists every setting)
	$(FULL_PYTHON) -m training.train $(ARGS)

export: $(FULL_STAMP) ## Write a bundle from a checkpoint (ARGS="--checkpoint FILE")
	$(FULL_PYTHON) -m export --output $(MODEL) $(ARGS)

quantize: $(FULL_STAMP) ## Write a bundle whose convolutions are in 8 bits beside MODEL
	$(FULL_PYTHON) -m export.quantization --model $(MODEL) --output $(MODEL)-int8 $(ARGS)

half: $(FULL_STAMP) ## Write a bundle that computes in half precision, for GPUs, beside MODEL
	$(FULL_PYTHON) -m export.half_precision --model $(MODEL) --output $(MODEL)-fp16 $(ARGS)

evaluate: $(FULL_STAMP) ## Measure how good a model is: a page and pictures (ARGS=--quick)
	$(FULL_PYTHON) -m evaluation --model $(MODEL) $(ARGS)

docs-pictures: $(FULL_STAMP) ## Draw the pictures of docs/how-it-works.md anew, from the model
	PYTHONPATH=. $(FULL_PYTHON) -m tools.docs_pictures $(ARGS)

notebook: $(FULL_STAMP) ## Run docs/notebook.ipynb from front to back and keep what it shows
	$(FULL_PYTHON) tools/run_notebook.py $(ARGS)

ablate: $(FULL_STAMP) ## Measure one change of the recipe at a time (hours; ARGS="--help")
	PYTHONPATH=. $(FULL_PYTHON) tools/ablate.py $(ARGS)

load: $(FULL_STAMP) ## Send load to a server and say how long it took (ARGS="--target HOST:PORT")
	$(FULL_PYTHON) -m benchmarks.load $(ARGS)

# --- Measure its speed -----------------------------------------------------------------------

# On a machine that does nothing else. Each writes benchmarks/results/NAME.json; with ARGS=--quick
# it only shows that it works, and writes to build/benchmarks.
BENCHMARKS := engine limit startup training peers

bench: $(addprefix bench-,$(BENCHMARKS)) bench-report ## Measure speed against peers and the limit: an hour (or bench-peers ...)

bench-engine: $(FULL_STAMP)
	$(FULL_PYTHON) -m benchmarks.engine_overhead $(ARGS)

# A kernel for an older CPU, if the environment names one, would slow NumPy's matrix product.
bench-limit: $(FULL_STAMP)
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(FULL_PYTHON) -m benchmarks.limit $(ARGS)

bench-startup: bench-peers-env
	$(FULL_PYTHON) -m benchmarks.startup $(ARGS)

bench-training: bench-peers-env
	PYTHONPATH=.:protos $(PEERS_ENV)/bin/python -m benchmarks.training $(ARGS)

bench-peers: bench-peers-env
	$(FULL_PYTHON) -m benchmarks.peers $(ARGS)

# Proves and measures the engine on an NVIDIA GPU with a driver for CUDA 13; not part of bench.
bench-gpu: $(GPU_ENV)/.stamp $(PEERS_ENV)/.stamp
	$(GPU_ENV)/bin/python -m benchmarks.gpu --peer-python $(PEERS_ENV)/bin/python $(ARGS)

bench-report: $(FULL_STAMP)
	$(FULL_PYTHON) -m benchmarks.report $(filter --quick,$(ARGS))

bench-peers-env: $(SERVING_STAMP) $(PEERS_ENV)/.stamp
	@$(MAKE) --no-print-directory $(TRITON_ENV)/.stamp || echo 'Triton is left out.' >&2

# --- Work on it ------------------------------------------------------------------------------

test: $(FULL_STAMP) ## Run every test
	$(FULL_PYTHON) -m pytest $(ARGS)

# The tests end before the limit does on two cores that are otherwise idle.
fault-test: $(FULL_STAMP) ## Try every promise at its full size: 20 minutes, on a quiet machine
	$(FULL_PYTHON) -m pytest -m 'fault or promise' --session-timeout 1700 $(ARGS)

# The first build fetches the packages of the image.
compose-test: $(FULL_STAMP) ## Build the server's image and try docker-compose.yml (needs Docker)
	$(FULL_PYTHON) -m pytest -m compose tests/test_deploy_compose*.py --session-timeout 1800 $(ARGS)

check: $(FULL_STAMP) ## Format, lint, types, import contracts, proto and Dockerfile lint, stubs fresh
	$(FULL_ENV)/bin/ruff format --check .
	$(FULL_ENV)/bin/ruff check .
	$(FULL_ENV)/bin/mypy
	$(FULL_ENV)/bin/lint-imports
	$(FULL_ENV)/bin/buf lint
	$(FULL_ENV)/bin/hadolint Dockerfile
	@fresh=$$(mktemp -d); trap 'rm -rf "$$fresh"' EXIT; \
	$(call compile_protos,"$$fresh"); \
	for stub in $$(cd "$$fresh" && find . -type f); do \
	  diff -u "protos/$$stub" "$$fresh/$$stub" || { echo 'Stale stubs: make stubs' >&2; exit 1; }; \
	done

format: $(FULL_STAMP) ## Format the code and fix what the linter can fix
	$(FULL_ENV)/bin/ruff format .
	$(FULL_ENV)/bin/ruff check --fix .

stubs: $(FULL_STAMP) ## Write the Python stubs of the protos anew
	$(call compile_protos,$(STUBS_DIR))

dashboard: $(FULL_STAMP) ## Write the Grafana dashboard anew from tools/dashboard_panels.py
	PYTHONPATH=. $(FULL_PYTHON) tools/dashboard.py

# $(call compile_protos,DIRECTORY): the stubs and their types; protoc finds its plugins on the PATH.
compile_protos = PATH="$(abspath $(FULL_ENV))/bin:$$PATH" $(FULL_PYTHON) -m grpc_tools.protoc \
  -I protos --python_out=$(1) --mypy_out=$(1) --grpc_python_out=$(1) --mypy_grpc_out=$(1) $(PROTOS)

# One version of each package in all files: the others follow what full.txt, the tested one, says.
# Versions that still fit stay; ARGS=--upgrade looks for newer ones.
UV_COMPILE = $(FULL_ENV)/bin/uv pip compile pyproject.toml --quiet --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command 'make constraints' $(ARGS)

# The peers of the benchmarks have wheels for fewer systems than this project is for.
UV_COMPILE_PEERS = $(FULL_ENV)/bin/uv pip compile --quiet --no-config --python-version 3.11 \
  --generate-hashes --no-emit-index-url --custom-compile-command 'make constraints' $(ARGS)

constraints: $(FULL_STAMP) ## Pin the versions in requirements/ anew (ARGS=--upgrade)
	$(UV_COMPILE) --extra serving --extra training --extra dev --group build \
	  -o requirements/full.txt
	$(UV_COMPILE) --extra serving --group build -c requirements/full.txt \
	  -o requirements/serving.txt
	$(UV_COMPILE) --extra serving-gpu --group build -c requirements/full.txt \
	  -o requirements/serving-gpu.txt
	cp requirements/full.txt requirements/training.txt  # PyTorch's markers fit no constraint file
	$(UV_COMPILE) --extra training --group build -o requirements/training.txt
	$(UV_COMPILE_PEERS) benchmarks/peers/requirements/python.in -c requirements/full.txt \
	  -o benchmarks/peers/requirements/python.txt
	$(UV_COMPILE_PEERS) benchmarks/peers/requirements/triton.in \
	  -o benchmarks/peers/requirements/triton.txt

clean: ## Remove the environments, the caches and demo.png (not runs/, not models/)
	rm -rf $(SERVING_ENV) $(FULL_ENV) $(PEERS_ENV) $(TRITON_ENV) $(GPU_ENV) build dist *.egg-info demo.png
	rm -rf .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Environments ----------------------------------------------------------------------------

# In two steps, so that an edit of pyproject.toml does not have every package looked at again.

# $(call make_environment,WHAT): from the first prerequisite, every hash checked.
define make_environment
@echo "Making $(@D) from $< (once; $(1))"
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || \
  { echo 'Python 3.11 to 3.14 is needed. Name one: make PYTHON=python3.11 ...' >&2; exit 1; }
@$(PYTHON) -m venv $(@D)
@$(@D)/bin/python -m pip install --quiet --no-compile --require-hashes -r $<
@touch $@
endef

# This project itself: without its dependencies, and without fetching a build tool.
define install_project
@$(@D)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
@touch $@
endef

$(SERVING_ENV)/.packages: requirements/serving.txt
	$(call make_environment,no PyTorch in it: about 200 MB)

$(FULL_ENV)/.packages: requirements/full.txt
	$(call make_environment,with PyTorch and its CUDA libraries: about 6 GB)

$(GPU_ENV)/.packages: requirements/serving-gpu.txt
	$(call make_environment,ONNX Runtime with CUDA: about 3 GB)

$(SERVING_STAMP) $(FULL_STAMP) $(GPU_ENV)/.stamp: %/.stamp: %/.packages pyproject.toml
	$(install_project)

# The peers that run beside PyTorch: the full environment's packages, and theirs on top.
$(PEERS_ENV)/.stamp: benchmarks/peers/requirements/python.txt | $(FULL_STAMP)
	@echo 'Making $(PEERS_ENV) from $< (once; about 150 MB)'
	@$(FULL_PYTHON) -m venv $(PEERS_ENV)
	@$(FULL_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(PEERS_ENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/full.pth"
	@$(PEERS_ENV)/bin/python -m pip install --quiet --no-compile --require-hashes -r $<
	@touch $@

$(TRITON_ENV)/.stamp: benchmarks/peers/requirements/triton.txt
	@echo 'Making $(TRITON_ENV) from $< (once; about 450 MB)'
	@$(SYSTEM_PYTHON) -m venv $(TRITON_ENV) || \
	  { echo 'Triton needs the Python of the system with venv and a shared libpython' \
	    '(Debian: apt-get install python3-venv libpython3-dev), or make SYSTEM_PYTHON=...' >&2; exit 1; }
	@$(TRITON_ENV)/bin/python -m pip install --quiet --no-compile --require-hashes -r $<
	@touch $@
