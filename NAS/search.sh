#!/usr/bin/env bash
# Runs the architecture search: NAS/search.sh [--config FILE] [field=value ...] (default config: NAS/config.py)
#
# See train.sh for the environment variables and for relative paths.
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
case " $* " in
  *" --config"*) exec bash "$project/utils/distributed/launch.sh" NAS/search.py "$@" ;;
  *) exec bash "$project/utils/distributed/launch.sh" NAS/search.py --config "$project/NAS/config.py" "$@" ;;
esac
