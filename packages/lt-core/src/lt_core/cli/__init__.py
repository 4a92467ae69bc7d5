"""Command line on jsonargparse: module, data module and trainer from arguments, configuration files and variables.

`LightningCLI` makes the parser from the signatures, reads, builds the objects and runs one of fit, validate, test and
predict. jsonargparse does the reading; what is written here is what the words mean: which classes belong to which key,
how an optimizer that was named becomes the module's, what is kept beside the run, and errors of one line.
"""

from importlib.util import find_spec

from lt_interface.errors import MissingPackageError

if find_spec("jsonargparse") is None:
    raise MissingPackageError(
        "lt_core.cli: jsonargparse is needed. Run: pip install 'lt-core[cli]'", name="jsonargparse"
    )

from jsonargparse import Namespace

from lt_core.cli.lightning_cli import ArgsType, LightningCLI
from lt_core.cli.optimizers import (
    LRSchedulerCallable,
    LRSchedulerTypeTuple,
    LRSchedulerTypeUnion,
    OptimizerCallable,
    ReduceLROnPlateau,
    instantiate_class,
)
from lt_core.cli.parser import LightningArgumentParser, instantiate_module
from lt_core.cli.save_config import SaveConfigCallback

__all__ = [
    "ArgsType",
    "LRSchedulerCallable",
    "LRSchedulerTypeTuple",
    "LRSchedulerTypeUnion",
    "LightningArgumentParser",
    "LightningCLI",
    "Namespace",
    "OptimizerCallable",
    "ReduceLROnPlateau",
    "SaveConfigCallback",
    "instantiate_class",
    "instantiate_module",
]
