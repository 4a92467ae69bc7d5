"""Lay a checkpoint out as PyTorch Lightning does, and back.

Top-level keys, counters of the loops, optimizer states by number and the state of a loss scale are Lightning's own, so
that it can read the file. What it has no place for (random states, the place in the data and in the journal, names of
parameters) stands under ``lt_core``, which it passes over. A file without that key is one of Lightning's.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from lt_core.checkpoint.format.lightning_import import VERSION, imported
from lt_core.checkpoint.format.signature import signature_of

__all__ = ["OWN_KEYS", "from_layout", "header_of", "read_with", "to_layout"]

# What Lightning's layout has no place for.
OWN_KEYS = frozenset(
    {"lt_core_version", "progress", "rng", "seed", "metrics", "metric_objects", "callback_metrics", "logged"}
    | {"schedule", "handlers", "journal", "data", "precision", "ranks", "engine_folder", "loops", "lt_run"}
    | {"hparams_type", "datamodule_hparams_type"}
)
_OWN = "lt_core"
_LIKE = "2.6.0"  # the version whose layout this is
_SCALE = {"scale", "growth_factor", "backoff_factor"}


def to_layout(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree in Lightning's layout; its values are the tree's own."""
    own = {key: tree[key] for key in tree if key in OWN_KEYS}
    out = {key: value for key, value in tree.items() if key not in OWN_KEYS}
    own["order"] = list(tree)
    if isinstance(tree.get("progress"), Mapping) and isinstance(tree.get("state_dict"), Mapping):
        out[VERSION] = _LIKE
        out["loops"] = _loops(tree)
    states = tree.get("optimizer_states")
    if isinstance(states, list) and all(_is_named(state) for state in states):
        numbered = [_numbered(state) for state in states]
        out["optimizer_states"], own["optimizers"] = [n[0] for n in numbered], [n[1] for n in numbered]
    for state in (tree.get("precision") or {}).values():
        if isinstance(state, Mapping) and state.keys() >= _SCALE:
            out["MixedPrecision"] = {key: value for key, value in state.items() if key != "uncounted"}
    out[_OWN] = own
    return out


def from_layout(found: Any, where: str) -> dict[str, Any]:
    """Return the tree of a file in Lightning's layout, written here or by Lightning.

    Args:
        found: What is in the file.
        where: Its name, for errors.

    Raises:
        CheckpointError: If it is no checkpoint.
    """
    own = found.get(_OWN) if isinstance(found, Mapping) else None
    if not isinstance(own, dict) or "order" not in own:
        return imported(found, where)
    tree = {}
    for key in own["order"]:
        if key in own:
            tree[key] = own[key]
        elif key in found:
            tree[key] = found[key]
    if "optimizers" in own and "optimizer_states" in tree:
        pairs = zip(tree["optimizer_states"], own["optimizers"], strict=True)
        tree["optimizer_states"] = [_named(state, note) for state, note in pairs]
    return tree


def read_with(load: Any, path: str, weights_only: bool | None) -> Any:
    """Return what a method ``load_checkpoint`` reads; it is given ``weights_only`` if it takes that."""
    names = inspect.signature(load).parameters.values()
    takes = any(each.name == "weights_only" or each.kind is each.VAR_KEYWORD for each in names)
    return load(path, weights_only=weights_only) if takes and weights_only is not None else load(path)


def header_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return progress, signature of the parameters and keys of a file of which only an outline was read."""
    own = found.get(_OWN)
    tree = from_layout(found, "") if isinstance(own, dict) or "state_dict" in found else dict(found)
    weights = tree.get("state_dict")
    shapes = (
        {k: tuple(v.shape) for k, v in weights.items() if getattr(v, "shape", None) is not None} if weights else None
    )
    return {
        "versions": {"lt_core": tree.get("lt_core_version"), "lightning": found.get(VERSION)},
        "progress": tree.get("progress") or {"epoch": tree.get("epoch", 0), "step": tree.get("global_step", 0)},
        "parameters": None if shapes is None else signature_of(shapes),
        "keys": list(tree),
        "run": tree.get("lt_run"),
    }


def _is_named(state: Any) -> bool:
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    return isinstance(groups, list) and all(isinstance(g, Mapping) and "params" in g for g in groups)


def _numbered(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return an optimizer's state by the numbers of its parameters, and what gives them their names again."""
    groups, numbers = [], dict[Any, int]()
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers.setdefault(name, len(numbers))
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    rest = {key: value for key, value in state.items() if key not in ("state", "param_groups", "other_formats")}
    values = {numbers.get(name, name): value for name, value in state["state"].items()}
    note = {"names": list(numbers), "order": list(state), "formats": state.get("other_formats")}
    return {**rest, "state": values, "param_groups": groups}, note


def _named(state: Mapping[str, Any], note: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state that `_numbered` was given."""
    names = dict(enumerate(note["names"]))
    full = {
        **state,
        "other_formats": note["formats"],
        "state": {names.get(number, number): value for number, value in state["state"].items()},
        "param_groups": [{**g, "params": [names[n] for n in g["params"]]} for g in state["param_groups"]],
    }
    return {key: full[key] for key in note["order"] if key in full}


def _counts(**counts: int) -> dict[str, dict[str, int]]:
    return {"total": dict(counts), "current": dict(counts)}


def _batches(total: int = 0, current: int = 0, **rest: bool) -> dict[str, Any]:
    names = ("ready", "started", "processed", "completed")
    return {"total": dict.fromkeys(names, total), "current": dict.fromkeys(names, current), **rest}


def _idle(**rest: bool) -> dict[str, Any]:
    return {"state_dict": {}, "batch_progress": _batches(**rest)}


def _loops(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counters of Lightning's loops, as it has them where a checkpoint is written after a validation."""
    progress = tree["progress"]
    closed, step = bool(progress.get("epoch_closed", True)), int(progress.get("step", 0))
    done = int(progress.get("epoch", 0))
    place = ((tree.get("data") or {}).get("train") or {}).get("rounds", 0)
    batch = int(place if closed else progress.get("batch", 0))
    begun = done if closed else done + 1
    whole = max(done - 1, 0) if closed else done
    total = int(progress.get("batches", 0)) + (0 if closed else batch)
    fit = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": step},
        "epoch_loop.batch_progress": _batches(total, batch, is_last_batch=closed and batch > 0),
        "epoch_loop.scheduler_progress": _counts(ready=0, completed=0),
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": _counts(ready=step, completed=step),
                "zero_grad": _counts(ready=step, started=step, completed=step),
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": _counts(ready=step, completed=step),
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": _batches(is_last_batch=True),
        "epoch_progress": _counts(ready=begun, started=begun, processed=done, completed=whole),
    }
    evaluation = {name: _idle(is_last_batch=False) for name in ("validate_loop", "test_loop")}
    return {"fit_loop": fit, **evaluation, "predict_loop": _idle()}
