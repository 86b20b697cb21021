#!/usr/bin/env bash
# Trains with ArcFace and a teacher: ./train_kd.sh [--multi-step] [--config FILE] [field=value ...]
# The environment variables are those of train.sh.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")" && exec bash utils/launch.sh train_kd.py "$@"
