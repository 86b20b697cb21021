#!/usr/bin/env bash
# Searches for cells: NAS/search.sh [--config FILE] [field=value ...]; without --config by NAS/config.py
#
# The environment variables are those of train.sh; paths count from the project's folder.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
case " $* " in
  *" --config"*) exec bash utils/launch.sh NAS/search.py "$@" ;;
  *) exec bash utils/launch.sh NAS/search.py --config NAS/config.py "$@" ;;
esac
