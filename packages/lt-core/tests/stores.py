"""Stores of metrics as a loop has them, and calls as ``self.log`` makes them."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch

from lt_core import LightningModule
from lt_core.metrics.store import EVAL_EPOCH_END, EVAL_STEP, TRAIN_EPOCH_END, TRAIN_STEP, MetricStore

DEFAULTS = {
    name: parameter.default
    for name, parameter in signature(LightningModule.log).parameters.items()
    if name not in {"self", "name", "value", "batch_size"}
}


def log(store: MetricStore, name: Any, value: Any, **given: Any) -> None:
    """Call the store as ``self.log`` does."""
    size = given.pop("batch_size", None)
    store.add(name, value, tuple({**DEFAULTS, **given}.values()), size)


def training(**given: Any) -> MetricStore:
    store = MetricStore(**given)
    store.scope, store.hook, store.batch = TRAIN_STEP, "training_step", torch.zeros(4, 2)
    return store


def evaluation(**given: Any) -> MetricStore:
    store = training(**given)
    store.scope, store.hook = EVAL_STEP, "validation_step"
    return store


def epoch_of(store: MetricStore) -> dict[str, float]:
    store.scope, store.batch = (TRAIN_EPOCH_END if store.scope == TRAIN_STEP else EVAL_EPOCH_END), None
    return store.take_epoch()
