"""Questions about files that a person named."""

from collections.abc import Callable


def is_there(check: Callable[[], bool]) -> bool:
    """What a path's is_file or is_dir says; False where it may not look, or no path can be that long."""
    try:
        return check()
    except OSError:
        return False
