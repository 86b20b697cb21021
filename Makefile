# make demo     a small PocketNet from scratch: synthetic faces, training, scores
# make demo-ijb the demo's network on a synthetic set in the layout of IJB-C
# make demo-kd  does a teacher help? plain, template and multi-step distillation side by side
# make demo-search a search on synthetic faces, and the rank of its cells among random ones
# make test     lint, types and the quick tests
# make drills   the long tests: kills, faults, several machines, fuzz, MXNet
# make gpu-check  checks and measures training on the GPU of this machine, with the Python that is there
# make help     the other targets

PYTHON ?= python3
PY := .venv/bin/python
DEVICE ?= auto
SOURCES := config backbones utils eval NAS data deploy tests benchmarks train.py train_kd.py

.PHONY: help install demo demo-ijb demo-kd demo-search test drills check gpu-check test-mxnet format clean
.DELETE_ON_ERROR:

help:
	@echo "make install     only the environment .venv"
	@echo "make demo        train a small PocketNet on synthetic faces and score it"
	@echo "make demo-ijb    score the demo's network on a synthetic set in the layout of IJB-C"
	@echo "make demo-kd     does a teacher help? plain, template and multi-step distillation side by side"
	@echo "make demo-search search for cells on synthetic faces, and rank them among random ones"
	@echo "make test        lint, types and the quick tests"
	@echo "make drills      the long tests: kills, faults, several machines, fuzz, MXNet"
	@echo "make check       only lint and types"
	@echo "make gpu-check   check and measure training on a GPU, with PYTHON and its packages; DEVICE=cpu tries the check"
	@echo "make test-mxnet  the record files against the real MXNet (Python 3.11 or older)"
	@echo "make format      format the code"
	@echo "make clean       remove environments, demo data and demo output"

# ---------------------------------------------------------------- environments

install: .venv/installed

.venv/installed: requirements.txt requirements-align.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: PocketNet needs Python 3.11 or newer; name one: make PYTHON=python3.11")'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-align.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt .venv/installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

.venv-mxnet/installed: requirements-mxnet.txt
	test -x .venv-mxnet/bin/python || $(PYTHON) -m venv .venv-mxnet
	.venv-mxnet/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-mxnet.txt
	@touch $@

# ------------------------------------------------------------------------ demo

demo: output/demo/results.txt
	@echo
	@cat output/demo/results.txt
	@echo
	@echo "Accuracy in % on pairs of people the network has never seen, mean ± standard deviation over ten folds."
	@echo "The people: data/faces_demo/people.png. The checkpoints: output/demo. The curves: tensorboard --logdir logs"

data/faces_demo/made.json: data/make_demo_faces.py $(filter-out data/synthetic/photos.py,$(wildcard data/synthetic/*.py)) utils/datasets/recordio/record_format.py | .venv/installed
	$(PY) data/make_demo_faces.py --force
	@touch $@

output/demo/results.txt: data/faces_demo/made.json config/config_demo.py config/base.py
	rm -rf output/demo logs/demo
	NPROC=1 NNODES=1 PYTHON=$(PY) ./train.sh --config config/config_demo.py
	$(PY) eval/eval.py --config config/config_demo.py

demo-ijb: output/demo/results.txt
	$(PY) data/make_demo_ijb.py
	PYTHON=$(PY) eval/IJB/runIJBEval.sh --target IJBC --image-path data/ijb_demo --config config/config_demo.py

# Finished runs are kept, so the same command resumes an interrupted one. To start over: rm -r output/demo_kd
demo-kd: data/faces_demo/made.json
	$(PY) benchmarks/experiments/demo_kd.py

# Finished searches and trainings are kept too. To start over: rm -r output/demo_search
demo-search: .venv/installed
	$(PY) -m benchmarks.experiments.searches --out output/demo_search --seeds 1 --only first-order --epochs 1

# ----------------------------------------------------------------------- tests

# A test process that dies ends the run, which names its test; replaced, it could be waited for without end.
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: check
	$(PYTEST) tests/unit tests/commands

# What takes minutes: kills, faults, several machines, fuzz, and the record files against the real MXNet.
drills: test-mxnet
	$(PYTEST) tests/drills --ignore tests/drills/test_mxnet.py

check: .venv/installed-dev
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m mypy

# Makes no environment and fetches nothing: a machine with GPUs has a torch that fits its driver, and may be offline.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --device $(DEVICE)

# MXNet has no build for Python 3.12 and newer.
test-mxnet: .venv/installed-dev
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 12))'; then \
	  $(MAKE) --no-print-directory .venv-mxnet/installed && $(PY) -m pytest tests/drills/test_mxnet.py; \
	else echo "test-mxnet: left out, MXNet needs Python 3.11 or older (make PYTHON=python3.11 test-mxnet)"; fi

format: .venv/installed-dev
	$(PY) -m ruff check --fix $(SOURCES)
	$(PY) -m ruff format $(SOURCES)

clean:
	rm -rf .venv .venv-mxnet data/faces_demo data/faces_search data/faces_searches data/faces_cells_* data/faces_recipes_* data/ijb_demo
	rm -rf output/demo output/demo_kd output/demo_search output/search_cost output/searches output/cells output/recipes output/gpu_check logs/demo
