#!/usr/bin/env bash
# Trains with ArcFace: ./train.sh [--config FILE] [field=value ...]
#
# Environment variables:
#   NPROC        processes on this machine (default: one per GPU; with device=cpu or without GPUs one that uses all cores)
#   NNODES       number of machines (default 1); with several, run this on each of them and set also
#   NODE_RANK    rank of this machine, from 0
#   MASTER_ADDR  address of the machine of rank 0
#   MASTER_PORT  free port on that machine (default 29500)
#   MAX_RESTARTS how many times all processes restart from the last checkpoint after one of them fails (default 0)
#   PYTHON       Python interpreter (default: .venv/bin/python if it exists, otherwise python3)
#
# Paths on the command line are relative to the working folder, paths in a config file to the project's folder.
exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/distributed/launch.sh" train.py "$@"
