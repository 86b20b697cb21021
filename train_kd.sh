#!/usr/bin/env bash
# Trains with ArcFace and knowledge distillation: ./train_kd.sh [--multi-step] [--config FILE] [field=value ...]
# See train.sh for the environment variables and for relative paths.
exec bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/utils/distributed/launch.sh" train_kd.py "$@"
