#!/usr/bin/env bash
# Trains with ArcFace and a teacher: ./train_kd.sh [--multi-step] [--config FILE] [field=value ...]
# The environment variables and the rule for paths are those of train.sh.
exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/distributed/launch.sh" train_kd.py "$@"
