"""Read a checkpoint of PyTorch Lightning once, to go on with it here."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import os
import pathlib
import pickle
import re
import types
import uuid
from collections.abc import Mapping
from typing import Any

import torch

from lt_core.checkpoint.format.container import open_checkpoint
from lt_core.checkpoint.format.tree import soften
from lt_interface import CheckpointError, Problem

__all__ = ["VERSION", "as_checkpoint", "import_lightning", "imported", "read_torch"]

VERSION = "pytorch-lightning_version"
_OURS = ["state_dict", "hyper_parameters", "hparams_name", "datamodule_hyper_parameters", "lr_schedulers", "callbacks"]
_OURS += ["optimizer_states"]
# The state of the loss scale, by the names that it has had; only 16-mixed has one.
_SCALES = ("MixedPrecision", "MixedPrecisionPlugin", "NativeMixedPrecisionPlugin", "native_amp_scaling_state")
_THEIRS = {VERSION, "epoch", "global_step", "loops", "hparams_type", "_instantiator", "amp_scaling_state"}
_THEIRS |= {*_OURS, *_SCALES}
# Types of the standard library whose making runs nothing but their own constructor.
_HARMLESS: list[Any] = [
    *(collections.Counter, collections.deque, collections.defaultdict, argparse.Namespace, types.SimpleNamespace),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone, uuid.UUID),
    *(decimal.Decimal, fractions.Fraction, pathlib.PurePosixPath, pathlib.PureWindowsPath, pathlib.PosixPath),
    *(pathlib.WindowsPath, range, slice, complex, bytearray, frozenset, set, int, float, str, list, dict),
]


def import_lightning(path: str | os.PathLike[str], module: torch.nn.Module | None = None) -> dict[str, Any]:
    """Return the familiar checkpoint dict from a ``.ckpt`` file of PyTorch Lightning.

    Weights, hyper-parameters, counters, schedulers, callback states and the loss scale come over, and the user's own
    keys. Optimizer states are by place there: they get the names of their parameters if the file has these, or if
    ``module`` is given and its parameters fit in order; else they stay by place, and are resumed so. Random states and
    the place in the data are in no such file: an open epoch goes on behind as many batches of a new pass.

    Args:
        path: The file.
        module: The module that was trained, for the names of its parameters.

    Raises:
        CheckpointError: If torch is older than 2.10, the file cannot be read without running code, or it is no such
            checkpoint.
    """
    where = os.fspath(path)
    fix = "Load it where it was written, remove such objects (often hyper-parameters), and save it again."
    found = read_torch(where, fix)
    tree = imported(as_checkpoint(found), where)
    if "optimizer_states" in tree:
        tree["optimizer_states"] = _named_by(tree["optimizer_states"], module)
    return tree


def as_checkpoint(found: Any) -> Any:
    """Return what is in a file; where that is a module's weights and no more, as a checkpoint of them."""
    if isinstance(found, Mapping) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return {"state_dict": dict(found)}
    return found


def imported(found: Any, where: str) -> dict[str, Any]:
    """Return the familiar checkpoint dict from what is in a file of Lightning, optimizer states as they are there.

    Args:
        found: What is in the file.
        where: Its name, for errors.

    Raises:
        CheckpointError: If it is no such checkpoint.
    """
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), Mapping):
        rule = "a checkpoint of torch.save is a dict with a state_dict, or is one"
        raise CheckpointError(Problem(where, rule, type(found).__name__))
    tree: dict[str, Any] = {
        "epoch": _count(found.get("epoch")),
        "global_step": _count(found.get("global_step")),
        "imported_from": f"pytorch-lightning {found.get(VERSION, '(unknown version)')}",
        "progress": _progress(found),
    }
    tree.update({key: found[key] for key in _OURS if key in found})
    tree.update({key: value for key, value in found.items() if key not in _THEIRS})
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if isinstance(tree.get(key), dict):
            # Names to import and call are what this file must never bring over.
            tree[key] = soften({name: value for name, value in tree[key].items() if name != "_instantiator"})[0]
    scale = next((found[key] for key in _SCALES if isinstance(found.get(key), Mapping)), None)
    if scale:
        tree["precision"] = {"16-mixed": dict(scale)}
    return tree


def read_torch(where: str, fix: str, weights_only: bool = True, map_location: Any = "cpu") -> Any:
    """Return what a file of ``torch.save`` holds.

    Args:
        where: The file.
        fix: What to do about a file that holds objects.
        weights_only: Whether to read plain values and tensors alone.
        map_location: Where tensors go, as for ``torch.load``.

    Raises:
        CheckpointError: If torch is older than 2.10 (reading pickles was not safe), the file cannot be read without
            running code, or not at all.
    """
    major, minor = (int(part) for part in re.findall(r"\d+", str(torch.__version__))[:2])
    if (major, minor) < (2, 10):
        rule = "importing a pickle is safe only with torch 2.10 or newer"
        raise CheckpointError(Problem(where, rule, f"torch {torch.__version__}", "Run: pip install 'torch>=2.10'"))
    open_checkpoint(where).close()
    try:
        # A file, not its name: torch takes .safetensors in a name for the format.
        with torch.serialization.safe_globals([*_HARMLESS, *_numpy()]), open(where, "rb") as file:
            return torch.load(file, map_location=map_location, weights_only=weights_only)
    except pickle.UnpicklingError as error:
        blocked = ", ".join(sorted(set(re.findall(r"GLOBAL (\S+)", str(error)))))
        got = f"a file that needs {blocked}" if blocked else str(error).splitlines()[0][:200]
        rule = "objects in a file are made only with consent, since that runs code of the file"
        raise CheckpointError(Problem(where, rule, got, fix)) from error
    except Exception as error:  # a damaged file makes torch raise errors of many kinds, an object's class any
        rule = f"this is no file of torch.save that can be read ({type(error).__name__}: {str(error)[:200]})"
        raise CheckpointError(Problem(where, rule)) from error


def _numpy() -> list[Any]:
    """Return what arrays and scalars of numpy are made with."""
    import numpy as np

    scalar, array = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in np.sctypeDict.values() if kind is not np.object_}
    return [np.ndarray, np.dtype, scalar, array, *kinds]


def _count(value: Any) -> int:
    return value if type(value) is int else 0


def _dig(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _progress(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counters; Lightning's own loops know more than its top-level keys."""
    fit = _dig(found, "loops", "fit_loop")
    step = _count(found.get("global_step"))
    if not isinstance(fit, Mapping):
        return {"epoch": _count(found.get("epoch")), "batch": 0, "step": step, "samples": 0, "epoch_closed": True}
    begun, done = (_count(_dig(fit, "epoch_progress", "current", key)) for key in ("ready", "completed"))
    # A file saved at an epoch's end was written before that epoch was counted as completed.
    processed = _count(_dig(fit, "epoch_progress", "current", "processed"))
    completed = _count(_dig(fit, "epoch_loop.batch_progress", "current", "completed"))
    # Inside on_train_batch_end the batch is trained, but its counters come later.
    batch = max(completed, _count(_dig(fit, "epoch_loop.batch_progress", "current", "processed")))
    total = max(_count(_dig(fit, "epoch_loop.batch_progress", "total", key)) for key in ("completed", "processed"))
    last = bool(_dig(fit, "epoch_loop.batch_progress", "is_last_batch"))
    closed = last or batch == 0
    if last and batch:  # a validation saved it: the epoch's end is to come, and all its batches are trained
        processed = max(processed, begun)
    elif not closed and done == begun:  # a limit broke the epoch off; here it stays open
        done = max(done - 1, 0)
    stepped = _count(_dig(fit, "epoch_loop.state_dict", "_batches_that_stepped"))
    if batch == completed and stepped:  # its global step counts those of all optimizers
        optimizers = len(found.get("optimizer_states") or "1")
        step = stepped + (step == (stepped + 1) * optimizers)  # a validation comes before that batch is counted
    return {
        "epoch": max(done, processed) if closed else done,
        "batch": 0 if closed else batch,
        "batches": total if closed else max(total - batch, 0),
        "step": step,
        "samples": 0,
        "epoch_closed": closed,
    }


def _named_by(states: Any, module: torch.nn.Module | None) -> Any:
    """Return optimizer states by the names of their parameters where these are known, else as they are: by place."""
    if not isinstance(states, list) or not all(
        isinstance(state, Mapping) and "param_groups" in state for state in states
    ):
        return states  # also of a form of an optimizer's own
    names = [_names(state) for state in states]
    if module is not None and len(states) == 1 and names[0] is None:
        names = [_names_of(module, states[0])]
    return [state if found is None else _renamed(state, found) for state, found in zip(states, names, strict=True)]


def _names(state: Mapping[str, Any]) -> dict[Any, str] | None:
    """Return position -> name, where the optimizer was given named parameters."""
    groups = state["param_groups"]
    if not all(len(group.get("param_names") or ()) == len(group["params"]) for group in groups):
        return None
    return {index: name for group in groups for index, name in zip(group["params"], group["param_names"], strict=True)}


def _names_of(module: torch.nn.Module, state: Mapping[str, Any]) -> dict[Any, str] | None:
    """Return position -> name by the module's order, if count and shapes fit."""
    parameters = list(module.named_parameters())
    positions = [index for group in state["param_groups"] for index in group["params"]]
    if len(parameters) != len(positions):
        return None
    for index, (_, parameter) in zip(positions, parameters, strict=True):
        values = state["state"].get(index, {}).values()
        if any(isinstance(v, torch.Tensor) and v.dim() and v.shape != parameter.shape for v in values):
            return None
    return {index: name for index, (name, _) in zip(positions, parameters, strict=True)}


def _renamed(state: Mapping[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    groups = [
        {**{k: v for k, v in group.items() if k != "param_names"}, "params": [names[i] for i in group["params"]]}
        for group in state["param_groups"]
    ]
    return {"state": {names[index]: dict(values) for index, values in state["state"].items()}, "param_groups": groups}
