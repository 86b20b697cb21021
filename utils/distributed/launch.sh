#!/usr/bin/env bash
# Runs an entry script in one process, or in several with torchrun:
# bash utils/distributed/launch.sh train.py [argument ...]
# The path of the script is relative to the project, paths in its arguments are relative to the working folder. train.sh
# lists the environment variables.
set -euo pipefail

# Ignores signals that request a checkpoint until the program handles them: they would end it. A program leaves signals
# ignored that were ignored when it started, so POCKETNET_DROPPED_SIGNALS names those that only this script ignores.
POCKETNET_DROPPED_SIGNALS=
for name in SIGUSR1 SIGUSR2; do
  [ -n "$(trap -p "$name")" ] || POCKETNET_DROPPED_SIGNALS+="$name "
done
export POCKETNET_DROPPED_SIGNALS
trap '' USR1 USR2

fail() {
  echo "error: $*" >&2
  exit 2
}

# require_int NAME MIN: fails unless the variable holds a whole number from MIN
require_int() {
  [[ ${!1} =~ ^[0-9]{1,5}$ && ${!1} -ge $2 ]] || fail "$1: should be a whole number from $2, is '${!1}'"
}

# Python code that prints the address of this machine as seen from HOST PORT, where its host name may be unknown.
local_address='
import socket, sys
family, kind, protocol, _, address = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind, protocol) as connection:
    connection.connect(address)
    print(connection.getsockname()[0])
'

project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
script=$1
shift
# Imports the project's modules first, and none from the working folder.
export PYTHONSAFEPATH=1 PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$project/.venv/bin/python" ]; then PYTHON=$project/.venv/bin/python; fi
fi
if [ -z "${NPROC:-}" ]; then
  NPROC=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))' 2>/dev/null) ||
    fail "$PYTHON has no torch; run make install, or name another interpreter with PYTHON="
  if [ "$NPROC" != 1 ]; then
    device=$("$PYTHON" -m config --print device "$@") || exit
    [ "$device" != cpu ] || NPROC=1
  fi
fi
NNODES=${NNODES:-1} MAX_RESTARTS=${MAX_RESTARTS:-0}
require_int NPROC 1
require_int NNODES 1
require_int MAX_RESTARTS 0
if [ "$NPROC" = 1 ] && [ "$NNODES" = 1 ] && [ "$MAX_RESTARTS" = 0 ]; then
  exec "$PYTHON" "$project/$script" "$@"
fi

if [ "$NNODES" = 1 ]; then
  rendezvous=(--standalone) # utils/distributed/launch.py keeps it within this machine
else
  NODE_RANK=${NODE_RANK:-} MASTER_ADDR=${MASTER_ADDR:-}
  require_int NODE_RANK 0
  [ "$NODE_RANK" -lt "$NNODES" ] || fail "NODE_RANK: should be below NNODES=$NNODES, is '$NODE_RANK'"
  [ -n "$MASTER_ADDR" ] || fail "MASTER_ADDR: should be the address of the first of the $NNODES machines"
  MASTER_PORT=${MASTER_PORT:-29500}
  if [ "$MAX_RESTARTS" = 0 ]; then
    rendezvous=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
  else # with c10d only, all machines learn that one of them restarts its processes
    is_first=$([ "$NODE_RANK" = 0 ] && echo true || echo false)
    here=$("$PYTHON" -c "$local_address" "$MASTER_ADDR" "$MASTER_PORT") ||
      fail "MASTER_ADDR: cannot reach '$MASTER_ADDR'"
    rendezvous=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id pocketnet
      --rdzv-conf "is_host=$is_first" --local-addr "$here")
  fi
fi
# A wrong config ends here with one line, instead of one from every process and a report by torchrun.
"$PYTHON" -m config $([ "$script" = train_kd.py ] && echo --kd) "$@" >/dev/null
# A run that is stopped during verification finishes it before its checkpoint. Seconds; the default of torchrun is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}
exec "$PYTHON" -m utils.distributed.launch "${rendezvous[@]}" --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
  "$project/$script" "$@"
