#!/usr/bin/env bash
# Starts an entry script in one process, or in several by torchrun: bash utils/launch.sh train.py [argument ...]
# The environment variables are those of train.sh.
set -euo pipefail

if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
if [ -z "${NPROC:-}" ]; then
  NPROC=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))')
fi
NNODES=${NNODES:-1}
if [ "$NPROC" = 1 ] && [ "$NNODES" = 1 ]; then
  exec "$PYTHON" "$@"
fi

# A wrong config ends here in its one line, not in that of every process and torchrun's report on them.
"$PYTHON" -m config "${@:2}" >/dev/null
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}
exec "$PYTHON" -m torch.distributed.run --nnodes "$NNODES" --node-rank "${NODE_RANK:-0}" --nproc-per-node "$NPROC" \
  --master-addr "${MASTER_ADDR:-127.0.0.1}" --master-port "${MASTER_PORT:-29500}" "$@"
