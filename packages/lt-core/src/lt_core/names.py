"""Names that users look for: where each is, and what to use in the place of one that is not here.

A package that users import from asks this module for what it does not have itself, by its ``__getattr__``: a package
inside it, a class of a sibling package, or an answer. An answer is an ImportError, since Python drops the text of any
other error where a name is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from lt_interface import registry
from lt_interface.errors import Problem

__all__ = ["ABSENT", "finder"]

_PROFILE = "Subclass PassThroughProfiler with passes_through = False, or open torch.profiler.profile around the fit."
_DDP = 'Use strategy="ddp" of lt-accel; the model must fit on one device.'
_LOGGER = "Subclass lt_core.loggers.Logger, or use TensorBoardLogger, WandbLogger or MLFlowLogger."
_PRECISION = "Name the precision in Trainer(precision=...): it fits each strategy here."
_HOOKS = "LightningModule and LightningDataModule have these hooks themselves."
_ACCELERATOR = "Use an accelerator that is installed: lt_core.accelerators has them."

ABSENT = {
    "CometLogger": _LOGGER,
    "DataHooks": _HOOKS,
    "DeepSpeedPrecision": _PRECISION,
    "DeepSpeedStrategy": _DDP,
    "FSDPPrecision": _PRECISION,
    "FSDPStrategy": _DDP,
    "Fabric": "Use Trainer with automatic_optimization = False, which leaves the step to you, or torch itself.",
    "LightningLite": "Use Trainer with automatic_optimization = False, which leaves the step to you, or torch itself.",
    "ModelHooks": _HOOKS,
    "ModelParallelStrategy": _DDP,
    "NeptuneLogger": _LOGGER,
    "XLAAccelerator": _ACCELERATOR,
    "XLAPrecision": _PRECISION,
    "XLAProfiler": _PROFILE,
    "XLAStrategy": _ACCELERATOR,
    "find_usable_cuda_devices": 'Write Trainer(accelerator="cuda", devices="auto-idle:N"): the least used cards.',
}


def finder(module: str, *plugins: registry.Registry[Any]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package that users import from.

    Args:
        module: The package's name.
        plugins: Where the classes of sibling packages are looked for.

    Example:
        >>> import lt_core
        >>> lt_core.callbacks.ModelCheckpoint.__name__
        'ModelCheckpoint'
    """

    def find(name: str) -> Any:
        inside = vars(import_module(module))
        if not name.startswith("_"):
            for each in plugins:
                if name in registry.CLASSES.get(each.group, {}):
                    return each.class_named(name, module)
            if name in ABSENT:
                raise ImportError(str(Problem(f"{module}.{name}", "this version does not have it", "", ABSENT[name])))
            if "__path__" in inside and find_spec(f"{module}.{name}") is not None:
                return import_module(f"{module}.{name}")
        from difflib import get_close_matches

        near = get_close_matches(name, inside.get("__all__", ()), 1)
        more = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{more}")

    return find
