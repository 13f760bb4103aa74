"""smalti's venv side: everything before and after the GPU. Never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preproc.interface import OpenRun, Raster, open_mosaic, open_run

__all__ = ["OpenRun", "Raster", "open_mosaic", "open_run"]


def __getattr__(name: str) -> Any:
    """The Python interface, imported when it is used: `smalti --help` need not wait for it."""
    if name in __all__:
        from preproc import interface

        return getattr(interface, name)
    raise AttributeError(f"module 'preproc' has no attribute {name!r}")
