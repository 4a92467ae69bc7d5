"""Test the counts that other code reads off a trainer's loops."""

from __future__ import annotations

from typing import Any

import pytest
from quiet import QUIET

from lt_core import Trainer
from lt_core.callbacks import LambdaCallback
from lt_core.demos import BoringModel

FLAGS: dict[str, Any] = {**QUIET, "limit_train_batches": 3, "limit_val_batches": 2, "num_sanity_val_steps": 0}


def counts(trainer: Trainer) -> tuple[int, ...]:
    loop = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    return epochs.ready, epochs.completed, batches.current.ready, batches.current.completed, batches.total.completed


def test_counts_of_training_in_each_hook() -> None:
    """Epochs and batches are ready when they begin and completed when they are done, in the epoch and in all."""
    seen: dict[str, list[Any]] = {"epoch": [], "start": [], "end": [], "validation": []}
    note = {
        "on_train_epoch_start": lambda t, m: seen["epoch"].append(counts(t)),
        "on_train_batch_start": lambda t, *_: seen["start"].append((t.fit_loop.batch_idx, t.fit_loop.total_batch_idx)),
        "on_train_batch_end": lambda t, m, o, b, i: seen["end"].append(counts(t)),
        "on_validation_start": lambda t, m: seen["validation"].append(counts(t)),
    }
    trainer = Trainer(**FLAGS, max_epochs=2, callbacks=[LambdaCallback(**note)])
    trainer.fit(BoringModel())
    assert seen["epoch"] == [(1, 0, 0, 0, 0), (2, 1, 0, 0, 3)]
    assert seen["start"] == [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4), (2, 5)]
    assert seen["end"] == [(1, 0, i + 1, i, i) for i in range(3)] + [(2, 1, i + 1, i, 3 + i) for i in range(3)]
    assert seen["validation"] == [(1, 0, 3, 3, 3), (2, 1, 3, 3, 6)]
    assert counts(trainer)[:2] == (2, 2)
    assert trainer.fit_loop.epoch_loop.batch_progress.total.completed == 6
    assert trainer.fit_loop.epoch_loop.global_step == trainer.fit_loop.epoch_loop._batches_that_stepped == 6
    assert (trainer.fit_loop.max_epochs, trainer.fit_loop.min_epochs, trainer.fit_loop.max_steps) == (2, 0, -1)


def test_last_batch_and_validation_of_training() -> None:
    """The last batch of an epoch is known from its start on, and validation before its loaders are made."""
    seen: list[Any] = []

    class Asks(BoringModel):
        def configure_optimizers(self) -> Any:
            loop = self.trainer.fit_loop.epoch_loop
            seen.append((loop.trainer is self.trainer, loop.val_loop._data_source.is_defined()))
            return super().configure_optimizers()

    def note(trainer: Trainer, *_: Any) -> None:
        seen.append(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)

    hooks = ("on_fit_start", "on_train_batch_start", "on_train_batch_end", "on_validation_start", "on_train_end")
    trainer = Trainer(**FLAGS, max_epochs=1, callbacks=[LambdaCallback(**dict.fromkeys(hooks, note))])
    trainer.fit(Asks())
    assert seen == [(True, True), False, False, False, False, False, True, True, True, True]
    assert (trainer.fit_loop.max_batches, trainer.fit_loop.epoch_loop.val_loop.max_batches) == (3, [2])


def test_sizes_of_evaluation() -> None:
    """The loops of evaluation show each loader's batches."""
    trainer = Trainer(**FLAGS, max_epochs=1)
    trainer.validate(BoringModel(), verbose=False)
    assert (trainer.validate_loop.max_batches, trainer.validate_loop.num_dataloaders) == ([2], 1)
    assert trainer.test_loop.max_batches == trainer.predict_loop.max_batches == []


def test_limits_are_set_through_a_view_and_counts_are_not() -> None:
    """Limits that are set on a loop are the trainer's; a count is refused, an unknown name says what there is."""
    trainer = Trainer(**FLAGS, max_epochs=1)
    trainer.fit(BoringModel())
    trainer.fit_loop.max_epochs += 2
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(BoringModel())
    assert (trainer.max_epochs, trainer.max_steps, trainer.global_step) == (3, 8, 8)
    shown = r"its counts are shown, not changed\. Got "
    with pytest.raises(AttributeError, match=shown + r"fit_loop\.global_step = 3\. Step the optimizers"):
        trainer.fit_loop.global_step = 3
    with pytest.raises(AttributeError, match=shown + r"completed = 9\."):
        trainer.fit_loop.epoch_loop.batch_progress.total.completed += 1
    with pytest.raises(AttributeError, match=shown + r"reset\."):
        trainer.fit_loop.epoch_progress.reset()
    with pytest.raises(AttributeError, match=r"Trainer\.fit_loop has no attribute 'restarting'. It shows batch_idx, "):
        trainer.fit_loop.restarting  # noqa: B018
    with pytest.raises(AttributeError, match=r"Trainer\.test_loop has no attribute 'predictions'"):
        trainer.test_loop.predictions  # noqa: B018


def test_training_data_are_there_when_they_are_asked_for() -> None:
    """What a module asks for with setup_data in configure_optimizers, its trainer knows from then on."""

    class Scheduled(BoringModel):
        def configure_optimizers(self) -> Any:
            self.trainer.fit_loop.setup_data()
            self.seen = len(self.trainer.train_dataloader), self.trainer.num_training_batches
            return super().configure_optimizers()

    model = Scheduled()
    Trainer(**FLAGS, max_epochs=1).fit(model)
    assert model.seen == (64, 3)
