#!/usr/bin/env bash
# Scores checkpoints on IJB-B or IJB-C:
#
#   eval/IJB/runIJBEval.sh --target IJBC --image-path DIR [--model-prefix FILE_OR_FOLDER] [--config FILE]
#                          [--result-dir DIR] [--job NAME] [field=value ...]
#
# DIR holds loose_crop/ and meta/. What is not given comes from the environment (IJB_TARGET, IJB_IMAGE_PATH,
# IJB_MODEL_PREFIX, IJB_CONFIG, IJB_RESULT_DIR, IJB_JOB), the network from the config. --help lists the rest.
# On several GPUs it uses all (NPROC=1 keeps it to one). PYTHON names another Python. Paths that are typed here count
# from the working folder, those in a config file from the project's.
set -euo pipefail
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$project/.venv/bin/python" ]; then PYTHON=$project/.venv/bin/python; fi
fi
exec "$PYTHON" "$project/eval/IJB/evaluate.py" "$@"
