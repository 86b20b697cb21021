#!/usr/bin/env bash
# Scores checkpoints on IJB-B or IJB-C:
#
#   eval/IJB/runIJBEval.sh --target IJBC --image-path DIR [--model-prefix FILE_OR_FOLDER] [--config FILE]
#                          [--result-dir DIR] [--job NAME] [field=value ...]
#
# DIR contains loose_crop/ and meta/. Options that are not given default to environment variables (IJB_TARGET,
# IJB_IMAGE_PATH, IJB_MODEL_PREFIX, IJB_CONFIG, IJB_RESULT_DIR, IJB_JOB); the config defines the network. --help lists
# all options. Uses all GPUs of the machine; NPROC=1 restricts it to one. PYTHON selects another Python. Paths on the
# command line are relative to the working folder, paths in a config file to the project's folder.
set -euo pipefail
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$project/.venv/bin/python" ]; then PYTHON=$project/.venv/bin/python; fi
fi
exec "$PYTHON" "$project/eval/IJB/evaluate.py" "$@"
