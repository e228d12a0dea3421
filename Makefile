# make demo   set up, then train, evaluate and picture a small PSPNet, compared with stock PyTorch
# make test   set up, then pass the tests
# make lint   ruff and mypy
# make gpu    on a machine with a GPU: build, tests, sanitizer, benchmarks, training
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin

.PHONY: setup demo test test-native test-triton test-cuda-on-cpu test-cpp lint gpu clean

setup: $(VENV)/.ready

# Python compiles what is imported, a third of what is installed, when it first is: pip would compile all of it, while
# the build waits for torch. Where Python may not keep what it compiles, pip does.
PIP = $(BIN)/python -m pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

# torch comes first, so that the extension is linked against the very torch that it will be imported with. What else is
# required is installed while the extension is compiled; the last installation finds it compiled, or says what fails.
EXTRAS = train,dev,integrations,export
PRINT_REQUIREMENTS = import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print(*p["dependencies"], *(r for e in sys.argv[1].split(",") for r in p["optional-dependencies"][e]), sep="\n")
$(VENV)/.ready: export PATH := $(abspath $(BIN)):$(PATH)
$(VENV)/.ready: pyproject.toml setup.py CMakeLists.txt $(shell find csrc cmake buildtools -type f -not -name '*.pyc')
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch, then this package (compiling takes some minutes), into $(VENV)"
	$(PIP) --upgrade pip
	$(PIP) "torch>=2.11" "torchvision>=0.26" "setuptools>=77" cmake ninja pybind11
	@mkdir -p build && $(BIN)/python -c '$(PRINT_REQUIREMENTS)' $(EXTRAS) > build/requirements.txt
	$(BIN)/python setup.py --quiet build_ext > build/build_ext.log 2>&1 & \
	$(PIP) -r build/requirements.txt; status=$$?; wait; exit $$status
	$(PIP) --no-build-isolation -e ".[$(EXTRAS)]"
	$(BIN)/python -m pspnet_fast
	@touch $@

demo: setup
	$(BIN)/python -m pspnet_fast.demo --out demo

# Neighbouring tests stay in one process, which makes the fixtures of their file once; an idle one takes half of the rest.
PARALLEL = -n auto --dist worksteal

test: test-cpp test-native test-triton test-cuda-on-cpu

# pytest starts a process a core: each has one thread, else they wait for one another's.
test-native test-triton test-cuda-on-cpu: export OMP_NUM_THREADS = 1

# Back ends that must not be skipped: PSPNET_FAST_EXPECT_BACKENDS=cpu make test
test-native: setup
	$(BIN)/python -m pytest $(PARALLEL) tests --ignore=tests/cuda_on_cpu

# Triton reads its variable when it is imported, so its interpreter needs a process of its own.
test-triton: setup
	TRITON_INTERPRET=1 PSPNET_FAST_EXPECT_BACKENDS=triton $(BIN)/python -m pytest $(PARALLEL) tests/ops -k triton

# The CUDA kernels, compiled for the CPU: what a GPU would punish is found, and the operators' tests pass over them.
test-cuda-on-cpu: setup
	PSPNET_FAST_EXPECT_BACKENDS=cuda $(BIN)/python -m pytest $(PARALLEL) tests/cuda_on_cpu
	$(BIN)/python tests/cuda_on_cpu/run.py plain $(PARALLEL) tests/ops
	$(BIN)/python tests/cuda_on_cpu/run.py checked $(PARALLEL) tests/ops

test-cpp: setup
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/cpp -G Ninja -DPSPNET_FAST_CPP_TESTS_ONLY=ON
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/cpp
	PATH="$(abspath $(BIN)):$$PATH" ctest --test-dir build/cpp --output-on-failure

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu:
	$(BIN)/python -m benchmarks.gpu --out runs/gpu

clean:
	rm -rf build dist demo *.egg-info pspnet_fast/_C.*.so pspnet_fast/_build_info.json
