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

__all__ = ["ABSENT", "INNER", "finder", "instead"]

_HOOKS = "LightningModule and LightningDataModule have these hooks themselves."
_LOGO = "Leave the line out: nothing is advertised here."
_PRECISION = "Name the precision in Trainer(precision=...): it fits each strategy here."
_STEPS = "Use Trainer with automatic_optimization = False, which leaves the step to you, or torch itself."

ABSENT = {
    "DataHooks": _HOOKS,
    "DeepSpeedPrecision": _PRECISION,
    "FSDPPrecision": _PRECISION,
    "Fabric": _STEPS,
    "LightningLite": _STEPS,
    "ModelHooks": _HOOKS,
    "XLAPrecision": _PRECISION,
    "cli_lightning_logo": _LOGO,
    "find_usable_cuda_devices": 'Write Trainer(accelerator="cuda", devices="auto-idle:N"): the least used cards.',
}

#: Inner parts of Lightning's trainer that programs reach into, and who answers here.
INNER = {
    "_accelerator_connector": "Trainer has no _accelerator_connector: ask trainer.world_size, strategy or accelerator.",
    "_callback_connector": "Trainer has no _callback_connector: ask trainer.callbacks.",
    "_checkpoint_connector": "Trainer has no _checkpoint_connector: use trainer.save_checkpoint and ckpt_path.",
    "_logger_connector": "Trainer has no _logger_connector: ask trainer.callback_metrics or logged_metrics.",
}


def instead(name: str) -> str:
    """Return what to use in the place of a name that is not here: of plugins' classes the registry knows it."""
    for plugins in (registry.accelerators, registry.loggers, registry.profilers, registry.strategies):
        if name.endswith(kind := plugins.kind.title()):
            return plugins.instead(name.removesuffix(kind))
    return ABSENT.get(name, "")


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
            if text := instead(name):
                raise ImportError(str(Problem(f"{module}.{name}", "this version does not have it", "", text)))
            if "__path__" in inside and find_spec(f"{module}.{name}") is not None:
                return import_module(f"{module}.{name}")
        from difflib import get_close_matches

        near = get_close_matches(name, inside.get("__all__", ()), 1)
        more = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{more}")

    return find
