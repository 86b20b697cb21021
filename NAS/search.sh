#!/usr/bin/env bash
# Searches for cells: NAS/search.sh [--config FILE] [field=value ...]; without --config by NAS/config.py
#
# The environment variables and the rule for paths are those of train.sh.
project=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)
case " $* " in
  *" --config"*) exec bash "$project/utils/distributed/launch.sh" NAS/search.py "$@" ;;
  *) exec bash "$project/utils/distributed/launch.sh" NAS/search.py --config "$project/NAS/config.py" "$@" ;;
esac
