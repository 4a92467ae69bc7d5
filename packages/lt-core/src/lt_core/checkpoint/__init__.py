"""Keep a run's whole state in one safe file, and find, check, read and import such files."""

from lt_core.checkpoint.async_io import AsyncCheckpointIO
from lt_core.checkpoint.find import find_last, parameter_signature
from lt_core.checkpoint.lightning_import import import_lightning
from lt_core.checkpoint.safetensors_io import SafetensorsIO, load_checkpoint, peek, save_checkpoint, verify
from lt_core.checkpoint.tree import soften, try_encode

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
