#!/usr/bin/env bash
# Trains with ArcFace: ./train.sh [--config FILE] [field=value ...]
#
#   NPROC        processes on this machine (default: one a GPU, or one that uses every CPU core)
#   NNODES       machines (default 1); then on each of them also
#   NODE_RANK    which one this is, from 0
#   MASTER_ADDR  the first machine, as the others reach it
#   MASTER_PORT  a free port there (default 29500; one machine needs none)
#   MAX_RESTARTS how often all processes are started again, from the last checkpoint, when one of them ends (default 0)
#   PYTHON       the interpreter (default: .venv/bin/python where there is one)
#
# Paths that are typed here count from the working folder, those in a config file from the project's.
exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/distributed/launch.sh" train.py "$@"
