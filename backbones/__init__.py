"""Backbones. `from backbones import build_backbone` works without importing torch for those who need only the names."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "build_backbone":
        from backbones.build import build_backbone

        return build_backbone
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
