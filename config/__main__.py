"""Checks a config and its folders, prints every field: python -m config [--config FILE] [field=value …]"""

from config import make_folder, parse_command, require_data
from utils.errors import run


def main() -> None:
    """The command line."""
    config = parse_command("Check a config, its data folder and its output folders.", switches=["multi_step"])
    require_data(config)
    for field in ("output", "log_dir"):
        make_folder(config, field)
    for name, value in config.items():
        print(f"{name} = {value!r}")


if __name__ == "__main__":
    run(main)
