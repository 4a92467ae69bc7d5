"""Keep a run's whole state in one safe file, and find, check, read and import such files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_interface.lazy import lazy

if TYPE_CHECKING:
    from lt_core.checkpoint.find import *
    from lt_core.checkpoint.format.async_io import *
    from lt_core.checkpoint.format.lightning_import import *
    from lt_core.checkpoint.format.safetensors_io import *
    from lt_core.checkpoint.format.signature import *
    from lt_core.checkpoint.format.torch_io import *
    from lt_core.checkpoint.format.tree import *
else:
    # Read when first asked for, so that `import lt_core` does not wait for the file format.
    __all__, __getattr__, __dir__ = lazy(
        __name__,
        {
            "find": "find_last",
            "format.async_io": "AsyncCheckpointIO",
            "format.lightning_import": "import_lightning",
            "format.safetensors_io": "SafetensorsIO load_checkpoint peek save_checkpoint verify",
            "format.signature": "parameter_signature",
            "format.torch_io": "TorchCheckpointIO",
            "format.tree": "soften try_encode",
        },
    )
