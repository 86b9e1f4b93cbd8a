# Two commands carry a newcomer: `make demo` and `make test`. Both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUN := $(VENV)/bin
CHECKED := clients models service tests deploy

# Debian packages. The demo needs none; the tests use the real Redis, Prometheus, Chromium and OSMesa.
TEST_PACKAGES := libosmesa6 libegl1 libgl1 libgl1-mesa-dri redis-server prometheus chromium fonts-dejavu-core
SIM_PACKAGES := libosmesa6 libegl1 libgl1 libgl1-mesa-dri

# Base policies that other people trained: with the libraries they were trained with, in a venv of their own.
ADAPTERS ?= .venv-adapters
ADAPTED := lerobot==0.4.4 torchvision==0.28.0 openpi-client==0.1.2

.PHONY: help demo test test-all test-adapters check bench train evaluate image system-test system-sim constraints clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

demo: $(VENV)/.installed $(if $(ROBOT),$(VENV)/.installed-sim system-sim)  ## score two recorded episodes live (ONCE=1 ends by itself, ROBOT=1 runs the simulator)
	$(RUN)/sarm2 demo $(if $(ONCE),--once) $(if $(ROBOT),--robot)

test: system-test $(VENV)/.installed-dev  ## set up everything and run the fast tests
	@# Some tests hold clocks against real servers: what fails beside another worker is tried once more alone.
	$(RUN)/python -m pytest -n 2 --dist loadfile || $(RUN)/python -m pytest --last-failed --last-failed-no-failures none

test-all: system-test $(VENV)/.installed-dev  ## the slow and the browser tests too
	$(RUN)/python -m pytest -m "not gpu and not bench"

test-adapters: $(ADAPTERS)/.installed $(VENV)/.installed-dev  ## LeRobot and openpi: their policies as ours, openpi's client at the service
	PYTHONPATH=clients $(ADAPTERS)/bin/python -m pytest -m adapters tests/spiral/test_lerobot_policy.py tests/spiral/test_openpi_policy.py
	ADAPTERS=$(ADAPTERS) $(RUN)/python -m pytest -m adapters tests/service/test_openpi.py

check: $(VENV)/.installed-dev  ## ruff, mypy, import-linter
	$(RUN)/ruff check $(CHECKED)
	$(RUN)/ruff format --check $(CHECKED)
	$(RUN)/mypy
	$(RUN)/lint-imports

bench: $(VENV)/.installed-dev  ## measure, and print what tests/bench/reports keep
	$(RUN)/python -m pytest -m bench tests/bench -s

train: $(VENV)/.installed-sim system-sim  ## train the shipped bundle again (two to three hours on two cores)
	$(RUN)/sarm2 train

evaluate: $(VENV)/.installed-sim system-sim  ## measure the shipped bundle on fresh episodes
	$(RUN)/sarm2 evaluate --json evaluation.json

image:  ## build the container image (BASE=... for a CUDA base)
	docker build -t sarm2 $(if $(BASE),--build-arg BASE=$(BASE)) .

# torch goes first and pinned, so that nothing later pulls in another build of it.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c "import ensurepip" 2>/dev/null || PACKAGES=python3-venv sh deploy/debian-packages.sh
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml clients/pyproject.toml
	$(PIP) -e ./clients -e ".[cpu]"
	@touch $@

$(VENV)/.installed-sim: $(VENV)/.installed
	$(PIP) -e ./clients -e ".[cpu,sim]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e ./clients -e ".[cpu,sim,dev]"
	@touch $@

$(ADAPTERS)/.installed: constraints.txt tests/spiral/adapters.txt
	$(PYTHON) -m venv $(ADAPTERS)
	$(ADAPTERS)/bin/python -m pip install --quiet -c constraints.txt torch
	$(ADAPTERS)/bin/python -m pip install --quiet --no-deps $(ADAPTED)
	$(ADAPTERS)/bin/python -m pip install --quiet -r tests/spiral/adapters.txt
	@touch $@

system-test:
	@PACKAGES="$(TEST_PACKAGES)" sh deploy/debian-packages.sh

system-sim:
	@PACKAGES="$(SIM_PACKAGES)" sh deploy/debian-packages.sh

constraints:  ## write constraints.txt from the present venv
	@{ sed -n '/^#/p' constraints.txt; $(RUN)/python -m pip list --format=freeze --exclude-editable \
	  | grep -viE '^(pip|setuptools|editables|hatchling|sarm2|sarm2-client)==' | sed 's/+cpu//'; } > .constraints.new
	@mv .constraints.new constraints.txt

clean:  ## remove the venv and what runs left behind
	rm -rf $(VENV) demo_out .pytest_cache .mypy_cache .ruff_cache
