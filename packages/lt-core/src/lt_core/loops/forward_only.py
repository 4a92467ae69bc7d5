"""Run forward over the training data once more, as what is computed from activations needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lt_core.data.sources import feed_of
from lt_core.data.to_device import build_place
from lt_core.loops.batch import lone_step
from lt_core.metrics.objects import untouched
from lt_core.metrics.store import TRAIN_STEP
from lt_core.state import rng
from lt_core.state.stage import TRAIN

if TYPE_CHECKING:
    from lt_core.state.run import Run

__all__ = ["forward_only"]


def forward_only(run: Run) -> None:
    """Call the training step with each batch of the next epoch, in training mode and without gradients.

    No hook runs, and what is logged does not count. Metric objects, random state and the place in the data are
    afterwards as before.

    Args:
        run: The run, between two epochs.
    """
    feed, store = feed_of(run, TRAIN), run.metrics.train
    before, modes = feed.state_dict(), {part: part.training for part in run.module.modules()}
    step, place = lone_step(run, TRAIN), build_place(run, TRAIN)
    feed.stager = None
    run.module.train()
    random_state, inside = rng.isolate(run.trainer.accelerator, run.device), store.inside(TRAIN.step, TRAIN_STEP)
    with random_state, torch.no_grad(), store.mute(), untouched(run.module), inside:
        for i, batch in enumerate(run.timed_batches(feed.epoch(run.progress.epoch), TRAIN)):
            store.batch = batch if place is None else place(batch, 0)
            step(store.batch, i)
    store.batch = None
    for part, training in modes.items():
        part.training = training
    feed.close_epoch()
    feed.load_state_dict(before)
