# The words people type. CMake presets do the work; tools/setup checks for what each word needs.
.DEFAULT_GOAL := help
.PHONY: help run build test model bench lint format asan asan-runner tsan arm cuda cuda-check wheel install clean configure configure-all

MODEL ?= smollm2
FILE ?= tests/data/alice-opening.txt
QUESTION ?= Which animal did Alice follow down the hole?
# As they were given: a dollar sign in a question is no variable.
override FILE := $(value FILE)
override QUESTION := $(value QUESTION)
export FILE QUESTION
CACHE ?= base
PREFIX ?= /usr/local

# As in tools/fetch.py: without HOME the account's home directory counts.
ifeq ($(INNERKV_CACHE_DIR),)
home := $(or $(HOME),$(shell getent passwd "$$(id -u)" | cut -d: -f6))
INNERKV_CACHE_DIR := $(or $(XDG_CACHE_HOME),$(if $(home),$(home)/.cache))/innerkv
ifeq ($(INNERKV_CACHE_DIR),/innerkv)
$(error there is no home directory for the cache; set INNERKV_CACHE_DIR to a directory that can be written)
endif
endif
export INNERKV_CACHE_DIR
# Objects compiled once are found again wherever the tree was cloned to.
export CCACHE_DIR ?= $(INNERKV_CACHE_DIR)/ccache
export CCACHE_BASEDIR ?= $(CURDIR)
export CCACHE_NOHASHDIR ?= 1

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: MODEL=smollm2|gemma3  FILE=  QUESTION=  CACHE=preset  PREFIX="

run: build ## A question about a long document, answered on a quantized cache and on f16
	@model=$$(tools/model.py $(MODEL)) && set -x && \
	build/innerkv run -m "$$model" -f "$$FILE" -p "$$QUESTION" -n 24 --cache $(CACHE) --compare f16

build: configure ## The program, at build/innerkv
	@cmake --build build --target innerkv-cli

test: configure-all ## Every test; the last line counts them
	@tools/model.py $(MODEL) >/dev/null
	@tools/python_tests.py --prepare >/dev/null
	@cmake --build build
	@tools/run_tests.py build

model: ## Fetches the model, prints its path
	@tools/setup model
	@tools/model.py $(MODEL)

bench: build ## Decode attention against ggml's on one thread
	build/innerkv bench attention --head-dim 128 --q-heads 32 --kv-heads 8 --context 8192 \
	    --batch 1 --threads 1 --cache base,k4v4,k8v8 --peer ggml:f16,ggml:q8_0,ggml:q4_0

lint: configure-all ## clang-format, clang-tidy, shellcheck, pyflakes
	@tools/setup lint
	@tools/lint.py build

format: ## Formats the sources in place
	@tools/setup lint
	@tools/lint.py --fix-format

asan: ## The library's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tools/setup build
	@cmake --preset asan-ubsan >/dev/null
	@cmake --build build-asan-ubsan
	@tools/run_tests.py build-asan-ubsan

asan-runner: ## The runner's tests on random models, likewise
	@tools/setup build
	@tools/third_party.py >/dev/null
	@cmake --preset asan-ubsan-program >/dev/null
	@cmake --build build-asan-ubsan-program --target runner_tests
	@tools/run_tests.py build-asan-ubsan-program -L '^runner$$' -E Parity

tsan: ## The tests that use threads, under ThreadSanitizer
	@tools/setup build
	@cmake --preset tsan >/dev/null
	@cmake --build build-tsan --target attention_tests cache_tests python_tests
	@tools/run_tests.py build-tsan -R '^(Items\.|Append\.PartsOnThreads|ThreadPool\.|SharedCache\.)'

# An emulator is some 30 times slower. So of the tests only those that depend on the processor: bytes of pages, the
# instruction set against scalar (which needs no test against itself) and at the edges, formats of two head dimensions
# against the fp64 reference. IsaChoice.Environment starts its own program again, which the emulator does not do.
arm_tests := ^(F16|Presets|PageFormat|Documentation|Golden|Group|Layout|Page|IsaChoice)\.|^attention_exported
arm_tests := $(arm_tests)|^Available/(Isa|Edge)\.|^All/Formats\..*_(80|256)( |$$)

arm: ## Tests of the library on AArch64, by a cross compiler and an emulator
	@tools/setup build arm
	@cmake --preset aarch64 >/dev/null
	@cmake --build build-aarch64 --target format_tests attention_tests
	@tools/run_tests.py build-aarch64 -R '$(arm_tests)' -E '/scalar$$|Environment'

cuda: ## The program and the library with the CUDA kernels, in build-cuda/; nvcc 12.4 or later in PATH
	@tools/setup build
	@tools/third_party.py >/dev/null
	@cmake --preset cuda >/dev/null
	@cmake --build build-cuda --target innerkv innerkv-cli

cuda-check: ## Tests of the CUDA backend under compute-sanitizer, where there is a device
	@tools/check_cuda.sh

wheel: ## The Python package: source distribution and wheel, in dist/
	@tools/setup build python
	@tools/wheel.py dist

install: configure ## The library and the program, under PREFIX
	@cmake --build build --target innerkv innerkv-cli
	@cmake --install build --prefix "$(PREFIX)"

clean: ## Removes the build directories; downloads and ggml stay in the cache
	rm -rf build build-*/ dist/

# The Python package besides: it takes another download and Python's headers.
configure-all: parts := python
configure-all: options := -DINNERKV_BUILD_PYTHON=ON
configure configure-all:
	@tools/setup build $(parts)
	@tools/third_party.py >/dev/null # before CMake, which would add pages to its one line
	@cmake --preset release $(options) >/dev/null
