"""Stands in for the package easydict where it is not installed, as far as config files need it (make gpu-check)."""

from typing import Any


class EasyDict(dict):
    """Dict whose entries are attributes too; dicts in it become EasyDicts."""

    def __init__(self, values: dict[str, Any] | None = None, **named: Any) -> None:
        super().__init__()
        for name, value in ((values or {}) | named).items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, list | tuple):
            value = type(value)(EasyDict(each) if isinstance(each, dict) else each for each in value)
        elif isinstance(value, dict):
            value = EasyDict(value)
        super().__setattr__(name, value)
        super().__setitem__(name, value)

    __setitem__ = __setattr__
