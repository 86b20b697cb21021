"""The command line that all commands share: [--config FILE] [field=value …], and its errors in one line."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from config.fields import ConfigError, similar_field
from utils.errors import shorten


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and name the config's field where a person typed it as an option."""

    def __init__(self, description: str | None, **options: Any) -> None:
        """options: those of argparse.ArgumentParser."""
        super().__init__(description=description, **options)
        self._typed: Sequence[str] = ()

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Reads the command line (default: the process's); options may stand between overrides.

        Raises ConfigError for what is wrong with it.
        """
        self._typed = sys.argv[1:] if arguments is None else arguments
        return self.parse_intermixed_args(self._typed)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError in place of argparse's usage and exit."""
        if message.startswith("unrecognized arguments:"):
            raise self._unknown_option(message.partition(": ")[2].split(" ")[0])
        raise ConfigError(f"{shorten(message, 200, quote=False)}; --help lists the options")

    def _unknown_option(self, option: str) -> ConfigError:
        name, equals, value = option.partition("=")
        if not equals:
            typed = list(self._typed)
            after = typed[typed.index(name) + 1 :] if name in typed else []
            value = after[0] if after and not after[0].startswith("-") else "VALUE"
        field = similar_field(name)
        fix = f"set the field of the config: {field}={shorten(value, quote=False)}" if field else "--help lists them"
        if field == "resume":  # a command that resumes has the option
            fix = "this command does not resume a run"
        return ConfigError(f"{shorten(name, quote=False)}: no such option; {fix}")


def add_config_arguments(parser: argparse.ArgumentParser, switches: Iterable[str] = (), resume: bool = False) -> None:
    """Adds what names a config to a command: [--config FILE] [field=value …]; see `config.parse_command`.

    switches: fields that an option of their name sets to True: multi_step, --multi-step. resume: adds --resume, for
    commands that go on with a run.
    """
    parser.add_argument(
        "--config", metavar="FILE", help="config file, or a run's output folder (default: config/config.py)"
    )
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="a change of the config")
    if resume:
        parser.add_argument("--resume", choices=["auto", "0", "1"], help="resume=…; see config/base.py")
    for name in switches:
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, action="append_const", dest="on", const=f"{name}=True", help=f"{name}=True")
    parser.set_defaults(on=[])


def overrides_of(args: argparse.Namespace) -> list[str]:
    """Returns the changes of the config on a command's line, as add_config_arguments reads it."""
    resume = getattr(args, "resume", None)
    return [*args.overrides, *args.on, *([f"resume={resume}"] if resume else [])]
