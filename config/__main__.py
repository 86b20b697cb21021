"""Checks a config and prints every field: python -m config [--config FILE] [field=value …]"""

from config import parse_command, require_data
from utils.errors import run


def main() -> None:
    """The command line."""
    config = parse_command("Check a config and its data folder.")
    require_data(config)
    for name, value in config.items():
        print(f"{name} = {value!r}")


if __name__ == "__main__":
    run(main)
