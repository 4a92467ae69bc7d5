"""Names that users look for: where each is, and what to use in the place of one that is not here.

A package that users import from asks this module for what it does not have itself, by its ``__getattr__``: a package
inside it, a class of a sibling package, or an answer. An answer is an ImportError, since Python drops the text of any
other error where a name is imported. A module below this package that does not exist is asked for here too, by Python's
import system after every other place, so that such an import has its answer as well.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

from lt_interface import registry
from lt_interface.errors import Problem

__all__ = ["ABSENT", "INNER", "MODULES", "finder", "instead"]

_SAVE = "Call self.save_hyperparameters() in __init__; lt_core.core.mixins has HyperparametersMixin."
_WORD = 'Write the string, such as gradient_clip_algorithm="norm".'
_HOOKS = "LightningModule and LightningDataModule have these hooks themselves."
_LOGO = "Leave the line out: nothing is advertised here."
_PRECISION = "Name the precision in Trainer(precision=...): it fits each strategy here."
_STEPS = "Use Trainer with automatic_optimization = False, which leaves the step to you, or torch itself."

ABSENT = {
    "DDPSpawnStrategy": 'Write strategy="ddp_spawn".',
    "DataHooks": _HOOKS,
    "DataParallelStrategy": 'Write strategy="ddp": one process a device.',
    "DeepSpeedPrecision": _PRECISION,
    "EPOCH_OUTPUT": "Keep what the step made in an attribute, and use it in the hook of the epoch's end.",
    "FSDPPrecision": _PRECISION,
    "Fabric": _STEPS,
    "GradClipAlgorithmType": _WORD,
    "LightningEnum": _WORD,
    "LightningLite": _STEPS,
    "ModelHooks": _HOOKS,
    "ParallelStrategy": "Ask whether trainer.world_size is above 1.",
    "XLAPrecision": _PRECISION,
    "cli_lightning_logo": _LOGO,
    "find_usable_cuda_devices": 'Write Trainer(accelerator="cuda", devices="auto-idle:N"): the least used cards.',
    "get_standard_metrics": "Call get_metrics of a ProgressBar.",
    "save_hyperparameters": _SAVE,
}

#: Inner parts of Lightning's trainer that programs reach into, and who answers here.
INNER = {
    "_accelerator_connector": "Trainer has no _accelerator_connector: ask trainer.world_size, strategy or accelerator.",
    "_callback_connector": "Trainer has no _callback_connector: ask trainer.callbacks.",
    "_checkpoint_connector": "Trainer has no _checkpoint_connector: use trainer.save_checkpoint and ckpt_path.",
    "_logger_connector": "Trainer has no _logger_connector: ask trainer.callback_metrics or logged_metrics.",
}

_FILES = "Paths are those of this machine: use open, pathlib and torch.load."
_INSTALLED = "Use importlib.util.find_spec(...) is not None, and torch.__version__."
_MODULE = "Write: from lt_core import LightningModule."
_UPGRADE = "Run: lt checkpoint import FILE.ckpt; weights and states come along."
_FABRIC = "Look in lt_core.utilities: it has what users' code takes from it; the loop itself is Trainer."
_METRICS = "Use torchmetrics: self.log takes its objects."

_IMPORT = "Write: from lt_core.{0} import NAME."
_PLACES = (
    "accelerators callbacks demos loggers plugins plugins.io plugins.precision profilers strategies tuner utilities"
)

#: What to write in place of a module of PyTorch Lightning, by its path below lt_core; ``.*`` is any other of a package.
MODULES = {
    **{f"{place}.*": _IMPORT.format(place) for place in _PLACES.split()},
    "callbacks.base": "Write: from lt_core import Callback.",
    "callbacks.gpu_stats_monitor": "Write: from lt_core.callbacks import DeviceStatsMonitor.",
    "core.hooks": _HOOKS,
    "core.lightning": _MODULE,
    "core.memory": "Write: from lt_core.utilities.model_summary import ModelSummary.",
    "core.saving": "LightningModule.load_from_checkpoint and save_hyperparameters are methods of the module.",
    "fabric": _FABRIC,
    "core.*": _IMPORT.format("core"),
    "lite": ABSENT["LightningLite"],
    "logging": "Write: from lt_core.loggers import NAME.",
    "loggers.base": "Write: from lt_core.loggers.logger import Logger, rank_zero_experiment.",
    "loops.*": "Read trainer.fit_loop; to step yourself, set self.automatic_optimization = False.",
    "metrics.*": _METRICS,
    "overrides": "Loaders are shared out by themselves; Trainer(use_distributed_sampler=False) leaves them.",
    "profiler": "Write: from lt_core.profilers import SimpleProfiler.",
    "pytorch": "Write: import lt_core as pl. It has what lightning.pytorch had.",
    "serve": "LightningModule.to_onnx and to_torchscript export a model.",
    "trainer.*": "Its public attributes have what can be read: from lt_core import Trainer.",
    "trainer.supporters": "Write: from lt_core.utilities import CombinedLoader.",
    "utilities.argparse": "Write Trainer(**vars(args)), or use lt_core.cli.LightningCLI.",
    "utilities.cli": "Write: from lt_core.cli import LightningCLI.",
    "utilities.cloud_io": _FILES,
    "utilities.compile": "Give trainer.fit the module that torch.compile returned.",
    "utilities.consolidate_checkpoint": _UPGRADE,
    "utilities.deepspeed": 'Write strategy="ddp" where the model fits on one device.',
    "utilities.device_parser": "Write: from lt_core.accelerators import CPUAccelerator; accelerators parse devices.",
    "utilities.enums": _WORD,
    "utilities.imports": _INSTALLED,
    "utilities.logger": "Subclass lt_core.loggers.Logger: it gets plain numbers and a dict.",
    "utilities.metrics": _METRICS,
    "utilities.migration": _UPGRADE,
    "utilities.model_registry": "Give ckpt_path a path.",
    "utilities.signature_utils": "Use inspect.signature(hook).parameters.",
    "utilities.upgrade_checkpoint": _UPGRADE,
}


class _Answers:
    """Answers to imports of modules that this package does not have, given where Python found none."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raise the answer to an import; return None where there is none."""
        top, _, inner = name.partition(".")
        if top != __package__:
            return
        answer = MODULES.get(inner) or MODULES.get(f"{inner.rpartition('.')[0]}.*")
        if answer is not None:
            problem = Problem(name, "this version does not have this module", "", answer)
            raise ModuleNotFoundError(str(problem), name=name)


sys.meta_path.append(_Answers())


def instead(name: str) -> str:
    """Return what to use in the place of a name that is not here: of plugins' classes the registry knows it."""
    if name in ABSENT:
        return ABSENT[name]
    for plugins in (registry.accelerators, registry.loggers, registry.profilers, registry.strategies):
        if name.endswith(kind := plugins.kind.title()):
            return plugins.instead(name.removesuffix(kind))
    return ""


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
            inner = f"{module}.{name}"
            known = inner.partition(".")[2] in MODULES
            if known or ("__path__" in inside and PathFinder.find_spec(inner, inside["__path__"]) is not None):
                return import_module(inner)
        from difflib import get_close_matches

        near = get_close_matches(name, inside.get("__all__", ()), 1)
        more = f". Did you mean {near[0]!r}?" if near else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{more}")

    return find
