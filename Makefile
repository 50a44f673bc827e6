# demo · up · test · check · proto · bench: each a line or two. Every target makes what it needs.
.PHONY: demo up test test-gpu check proto bench bench-static bench-gpu lock clean
PYTHON ?= python3
BIN := .venv/bin
PROTOS := $(sort $(shell cd proto && find . -name '*.proto' | cut -c3-))

demo: .venv/ready ## the main job: register, promote, stream a mixed batch, reload in place
	@$(BIN)/python -m examples.demo

up: .venv/ready ## the demo's system, left running until Ctrl-C
	@$(BIN)/python -m examples.demo --stay

test: .venv/ready ## all tests
	@$(BIN)/pytest

check: .venv/ready ## everything CI checks beside the tests
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint && $(BIN)/buf breaking --against ".git#ref=$$(git rev-parse --verify --quiet origin/main || git rev-parse HEAD)"

proto: .venv/ready ## regenerate the stubs beside the protos
	$(BIN)/python -m grpc_tools.protoc -I proto --plugin=protoc-gen-mypy_grpc=$(BIN)/protoc-gen-mypy_grpc \
	  --python_out=proto --pyi_out=proto --grpc_python_out=proto --mypy_grpc_out=quiet:proto $(PROTOS)

bench: .venv/ready ## tokens/s and latencies beside this machine's own limits
	@$(BIN)/python -m bench

lock: .venv/ready ## pin what the pinned dependencies need, as it is installed now
	@(echo '# Every package of a working environment, for `make`; written by `make lock`.'; \
	  $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > constraints.txt

test-gpu: .venv/ready ## the tests of a device, and the kernels' again under the sanitizer; needs an NVIDIA GPU
	@$(BIN)/pytest -m gpu
	@for tool in memcheck racecheck; do compute-sanitizer --tool $$tool $(BIN)/pytest -q -m gpu tests/kernels || exit 1; done

bench-static: .venv/ready ## the CUDA kernels' registers, occupancy and bytes, by compiler and simulation; needs no GPU
	@$(BIN)/python -m bench.kernels_static

bench-gpu: .venv/ready ## the CUDA kernels beside torch's ways and the memory's floor; needs an NVIDIA GPU
	@$(BIN)/python -m bench.kernels_gpu

clean: ## forget the environment and everything made
	rm -rf .venv .cache

.venv/ready: pyproject.toml constraints.txt
	@echo "installing loraplex and its pinned dependencies into .venv (a minute or two, once)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
