#!/usr/bin/env bash
# Starts an entry script in one process, or in several by torchrun: bash utils/distributed/launch.sh train.py [argument ...]
# The script's path counts from the project, paths among its arguments from the working folder. The environment variables
# are those of train.sh.
set -euo pipefail

# A request for a checkpoint that comes before the program can heed it is dropped, and ends nothing. Ignored signals stay
# so in the program unless it is told that it may handle them; what was ignored before this script is left so.
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

# count NAME LEAST: the variable must hold a whole number from LEAST
count() {
  [[ ${!1} =~ ^[0-9]{1,5}$ && ${!1} -ge $2 ]] || fail "$1: should be a whole number from $2, is '${!1}'"
}

# Prints the address by which this machine is reached from the one that is named: a host name may not be known there.
address='
import socket, sys
family, kind, protocol, _, place = socket.getaddrinfo(*sys.argv[1:], type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind, protocol) as way:
    way.connect(place)
    print(way.getsockname()[0])
'

project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." && pwd)
script=$1
shift
# The project's modules come first, and none is taken from the working folder.
export PYTHONSAFEPATH=1 PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  if [ -x "$project/.venv/bin/python" ]; then PYTHON=$project/.venv/bin/python; fi
fi
if [ -z "${NPROC:-}" ]; then
  NPROC=$("$PYTHON" -c 'import torch; print(max(1, torch.cuda.device_count()))' 2>/dev/null) ||
    fail "$PYTHON has no torch; run make install, or name another with PYTHON="
fi
NNODES=${NNODES:-1} MAX_RESTARTS=${MAX_RESTARTS:-0}
count NPROC 1
count NNODES 1
count MAX_RESTARTS 0
if [ "$NPROC" = 1 ] && [ "$NNODES" = 1 ] && [ "$MAX_RESTARTS" = 0 ]; then
  exec "$PYTHON" "$project/$script" "$@"
fi

if [ "$NNODES" = 1 ]; then
  meet=(--standalone) # utils/distributed/launch.py lets nothing listen beyond this machine
else
  NODE_RANK=${NODE_RANK:-} MASTER_ADDR=${MASTER_ADDR:-}
  count NODE_RANK 0
  [ "$NODE_RANK" -lt "$NNODES" ] || fail "NODE_RANK: should be below NNODES=$NNODES, is '$NODE_RANK'"
  [ -n "$MASTER_ADDR" ] || fail "MASTER_ADDR: name the first of the $NNODES machines"
  MASTER_PORT=${MASTER_PORT:-29500}
  if [ "$MAX_RESTARTS" = 0 ]; then
    meet=(--nnodes "$NNODES" --node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT")
  else # only this way of meeting lets the other machines know that one starts its processes again
    first=$([ "$NODE_RANK" = 0 ] && echo true || echo false)
    here=$("$PYTHON" -c "$address" "$MASTER_ADDR" "$MASTER_PORT") || fail "MASTER_ADDR: no way to '$MASTER_ADDR'"
    meet=(--nnodes "$NNODES" --rdzv-backend c10d --rdzv-endpoint "$MASTER_ADDR:$MASTER_PORT" --rdzv-id pocketnet
      --rdzv-conf "is_host=$first" --local-addr "$here")
  fi
fi
# A wrong config ends here in its one line, not in that of every process and torchrun's report on them.
"$PYTHON" -m config $([ "$script" = train_kd.py ] && echo --kd) "$@" >/dev/null
# Asked to end in a verification, a run finishes that before its checkpoint: seconds, of which torchrun would give 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-120}
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > NPROC ? cores / NPROC : 1))}
exec "$PYTHON" -m utils.distributed.launch "${meet[@]}" --nproc-per-node "$NPROC" --max-restarts "$MAX_RESTARTS" \
  "$project/$script" "$@"
