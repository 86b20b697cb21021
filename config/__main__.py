"""Checks a config and its folders and prints every field: python -m config [--kd] [--config FILE] [field=value …]

With --print FIELD it prints the value of that field, and checks no folder.
"""

import logging
import sys

from config import (
    CommandParser,
    add_config_arguments,
    collect_overrides,
    ensure_output_folder,
    load_config,
    require_data,
    warn_unused_fields,
)
from config.fields import DEFAULTS
from utils.errors import run_cli


def main() -> None:
    """Runs the command."""
    parser = CommandParser("Check a config, its data folder and its output folders.")
    add_config_arguments(parser, switches=["multi_step"], resume=True)
    parser.add_argument("--kd", action="store_true", help="check the fields of knowledge distillation too")
    parser.add_argument("--print", dest="field", choices=DEFAULTS, metavar="FIELD", help="print this field alone")
    args = parser.parse()
    config = load_config(args.config, collect_overrides(args), distillation=args.kd)
    if args.field:
        print(getattr(config, args.field))
        return
    require_data(config)
    for field in ("output", "log_dir"):
        ensure_output_folder(config, field)
    for name, value in config.to_dict().items():
        print(f"{name} = {value!r}")
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
    if args.kd:
        warn_unused_fields(config, "train_kd", "./train_kd.sh")
    else:
        warn_unused_fields(config, "train", "./train.sh")


if __name__ == "__main__":
    run_cli(main)
