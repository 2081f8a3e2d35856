# The commands of a fresh clone. They need Python >= 3.11, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
# uv installs the same files in less time. It does not read pip's configuration, so UV= (empty) installs with pip.
UV ?= $(shell command -v uv)
INSTALL = $(if $(UV),$(UV) pip install --python $(BIN)/python,$(BIN)/pip install) --quiet --no-deps

.PHONY: demo watch test docs slurm-test faults mutations verify bench bench-gpu lint lock licences

demo: .venv/run.done  ## run the demo study on real data that scikit-learn ships, and write its report
	$(BIN)/snakemake --cores all --rerun-incomplete demo

watch:  ## show what is trained and measured, with epoch and time left; STUDY=demo shows one study
	@test -e .venv/run.done || { echo "Nothing is installed yet: run make demo first, or wait until it is"; exit 1; }
	@$(BIN)/python -m robreg.workflow.watch $(STUDY)

test: .venv/test.done .venv/docs.done  ## run all tests, except those on a SLURM
	$(BIN)/python -m pytest -n 2 --dist loadfile

# Not with --quiet, which would hide the warnings that --strict counts.
docs: .venv/docs.done  ## build the documentation into site/; it works offline
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open site/index.html in a browser."

slurm-test: .venv/test.done  ## install a one-node SLURM, test the workflow on it, and stop it; needs root on Debian
	$(BIN)/python -m pytest -m slurm tests/workflow/test_slurm_cluster.py

faults: .venv/test.done  ## kill, damage and fill up what the code works with, many times over; half an hour
	ROBREG_CASES=1000 $(BIN)/python -m pytest -q -s -m "not slurm" -W ignore tests/faults

mutations: .venv/test.done  ## break the code on purpose, one fault at a time, and show the test that catches it; an hour
	PYTHONPATH=tests $(BIN)/python tests/faults/mutations.py

verify: .venv/run.done  ## measure RUN, such as digits/ar8, again from its checkpoint, and compare with its tables
	@$(if $(RUN),,$(error name the run: make verify RUN=digits/ar8))$(BIN)/python -m robreg.checks.verify $(RUN)

bench: .venv/test.done  ## compare the speed with other libraries; minutes, on idle cores
	$(BIN)/python tests/bench/bench.py

bench-gpu: .venv/test.done  ## test what needs a GPU, then measure how fast training is on it, and what limits it
	$(BIN)/python -m pytest -q tests/kernels tests/networks/test_replayed.py tests/training/test_step.py \
		tests/training/test_loop.py::test_on_a_gpu_a_deterministic_run_that_is_killed_resumes_bit_identically
	$(BIN)/python tests/bench/bench_gpu.py

lint: .venv/test.done  ## run all static checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/snakemake --lint

# A stamp is older than its lock file only if the lock file changed, so a second call installs nothing.
.venv/run.done: envs/run.txt pyproject.toml
	@case "$(CURDIR)" in *" "*) echo "Snakemake cannot run in a folder with a space in its path: move $(CURDIR)"; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed, not $$($(PYTHON) --version): make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(INSTALL) --require-hashes -r envs/run.txt
	$(INSTALL) --no-build-isolation -e .
	touch $@

# --no-deps, because torchattacks pins a version of requests from 2020.
.venv/test.done: envs/test.txt .venv/run.done
	$(INSTALL) --require-hashes -r envs/test.txt
	touch $@

.venv/docs.done: envs/docs.txt .venv/run.done
	$(INSTALL) --require-hashes -r envs/docs.txt
	touch $@

lock:  ## pin the newest versions that pyproject.toml allows, for every platform; needs uv
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--python-version 3.11 --extra slurm --extra theory pyproject.toml envs/run.in -o envs/run.txt
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--python-version 3.11 --group pyproject.toml:test --override envs/test-override.in envs/run.txt -o envs/test.txt
	uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
		--python-version 3.11 --group pyproject.toml:docs --constraint envs/test.txt -o envs/docs.txt

licences: .venv/run.done  ## list the licences of the installed packages
	$(BIN)/python envs/licences.py > envs/licences.csv
