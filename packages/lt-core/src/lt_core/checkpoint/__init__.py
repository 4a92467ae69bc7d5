"""Keep a run's whole state in one safe file, and find, check, read and import such files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lt_core.checkpoint.find import find_last
    from lt_core.checkpoint.format.async_io import AsyncCheckpointIO
    from lt_core.checkpoint.format.lightning_import import import_lightning
    from lt_core.checkpoint.format.safetensors_io import SafetensorsIO, load_checkpoint, peek, save_checkpoint, verify
    from lt_core.checkpoint.format.signature import parameter_signature
    from lt_core.checkpoint.format.tree import soften, try_encode

__all__ = [
    "AsyncCheckpointIO",
    "SafetensorsIO",
    "find_last",
    "import_lightning",
    "load_checkpoint",
    "parameter_signature",
    "peek",
    "save_checkpoint",
    "soften",
    "try_encode",
    "verify",
]

# Read when first asked for, so that `import lt_core` does not wait for the file format.
_HOMES = {
    "AsyncCheckpointIO": "format.async_io",
    "find_last": "find",
    "import_lightning": "format.lightning_import",
    "parameter_signature": "format.signature",
    "soften": "format.tree",
    "try_encode": "format.tree",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'format.safetensors_io')}"), name)
    globals()[name] = value
    return value
