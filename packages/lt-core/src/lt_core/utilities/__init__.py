"""Functions and types that users' code takes from a trainer, under the paths that their imports name."""

from lt_core.data.combined import CombinedLoader
from lt_core.data.nested import apply_to_collection
from lt_core.data.nested import move_to_device as move_data_to_device
from lt_core.model.hparams import AttributeDict
from lt_core.names import finder
from lt_core.utilities.data import suggested_max_num_workers
from lt_core.utilities.grads import grad_norm
from lt_core.utilities.model_helpers import is_overridden
from lt_core.utilities.model_summary import ModelSummary, summarize
from lt_core.utilities.parameter_tying import find_shared_parameters, set_shared_parameters
from lt_core.utilities.parsing import is_picklable
from lt_core.utilities.rank_zero import rank_zero_debug, rank_zero_deprecation
from lt_core.utilities.throughput import measure_flops
from lt_core.utilities.types import STEP_OUTPUT
from lt_core.utilities.warnings import disable_possible_user_warnings
from lt_interface import MisconfigurationException, rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "STEP_OUTPUT",
    "AttributeDict",
    "CombinedLoader",
    "MisconfigurationException",
    "ModelSummary",
    "apply_to_collection",
    "disable_possible_user_warnings",
    "find_shared_parameters",
    "grad_norm",
    "is_overridden",
    "is_picklable",
    "measure_flops",
    "move_data_to_device",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "set_shared_parameters",
    "suggested_max_num_workers",
    "summarize",
]

__getattr__ = finder(__name__)
