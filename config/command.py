"""Command line shared by all commands: [--config FILE] [field=value …], with one-line errors."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from config.fields import ConfigError, similar_field
from utils.errors import shorten


class CommandParser(argparse.ArgumentParser):
    """ArgumentParser with one-line errors, which name the config field if it was typed as an option."""

    def __init__(self, description: str | None, **options: Any) -> None:
        """options: keyword arguments of argparse.ArgumentParser."""
        super().__init__(description=description, **options)
        self._arguments: Sequence[str] = ()

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the command line (default: sys.argv). Options and overrides may be mixed. Raises ConfigError."""
        self._arguments = sys.argv[1:] if arguments is None else arguments
        return self.parse_intermixed_args(self._arguments)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError instead of printing the usage and exiting."""
        if message.startswith("unrecognized arguments:"):
            raise self._unknown_option(message.partition(": ")[2].split(" ")[0])
        raise ConfigError(shorten(message, 200, quote=False), fix="--help lists the options")

    def _unknown_option(self, option: str) -> ConfigError:
        """Returns the error for an unknown option, with the config field that it may mean."""
        name, equals, value = option.partition("=")
        if not equals:
            arguments = list(self._arguments)
            rest = arguments[arguments.index(name) + 1 :] if name in arguments else []
            value = rest[0] if rest and not rest[0].startswith("-") else "VALUE"
        field = similar_field(name)
        fix = f"set the config field: {field}={shorten(value, quote=False)}" if field else "--help lists the options"
        if field == "resume":  # commands that can resume have this option
            fix = "this command does not resume a run"
        return ConfigError(f"{shorten(name, quote=False)}: no such option", fix=fix)


def add_config_arguments(parser: argparse.ArgumentParser, switches: Iterable[str] = (), resume: bool = False) -> None:
    """Adds the arguments [--config FILE] [field=value …] to a parser.

    switches: boolean fields that an option sets to True, as --multi-step sets multi_step. resume: adds the option
    --resume, for commands that can resume a run.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="config file, or a run's output folder (default: config/config.py)"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="override of a config field")
    if resume:
        parser.add_argument("--resume", choices=["auto", "0", "1"], help="sets resume; see config/base.py")
    for name in switches:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, action="append_const", dest="on", const=f"{name}=True", help=f"{name}=True")
    parser.set_defaults(on=[])


def collect_overrides(args: argparse.Namespace) -> list[str]:
    """Returns all overrides of a parsed command line as "field=value", those from options included."""
    resume = getattr(args, "resume", None)
    return [*args.overrides, *args.on, *([f"resume={resume}"] if resume else [])]
