"""Check when validation runs inside fit, against a model that counts every batch by hand."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_interface.errors import ConfigError


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 1, "num_sanity_val_steps": 0, **flags})


class Net(LightningModule):
    """Module that notes after how many training batches each validation began, and what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.done = 0
        self.validations: list[int] = []
        self.sanity: list[tuple[int, int]] = []
        self.seen: list[tuple[int, int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.done += 1
        return self.layer(batch).sum()

    def on_validation_start(self) -> None:
        if not self.trainer.sanity_checking:
            self.validations.append(self.done)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        (self.sanity if self.trainer.sanity_checking else self.seen).append((dataloader_idx, batch_idx))
        self.log("val", float(batch_idx), add_dataloader_idx=False)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def batches(n: int) -> list[Tensor]:
    return [torch.ones(1, 1)] * n


class Unsized:
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Tensor]:
        return iter(batches(self.n))


def validations(n: int, loader: Any = None, **flags: Any) -> list[int]:
    net = Net()
    trainer(**flags).fit(net, batches(n) if loader is None else loader, batches(1))
    return net.validations


def by_hand(n: int, epochs: int, interval: float, every: int | None, max_steps: int = -1, window: int = 1) -> list[int]:
    """Return after how many batches validation runs, counting one by one: where it was due and the window closes."""
    check = interval if isinstance(interval, int) else max(1, int(n * interval))
    found, total, due = [], 0, False
    for epoch in range(epochs):
        for i in range(n):
            total += 1
            counted = total if every is None else i + 1
            due = due or (counted % check == 0 and (every is None or (epoch + 1) % every == 0))
            if due and ((i + 1) % window == 0 or i + 1 == n):
                found.append(total)
                due = False
            if total == max_steps:
                return found
    return found


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(data=st.data(), n=st.integers(1, 9), epochs=st.integers(1, 4), sized=st.booleans(), accumulate=st.integers(1, 3))
def test_validation_runs_where_counting_says(data: Any, n: int, epochs: int, sized: bool, accumulate: int) -> None:
    """For any length, interval and cadence of epochs, validations begin after the same batches as in the model."""
    every = data.draw(st.sampled_from([None, 1, 2, 3]))
    interval: Any = data.draw(st.integers(1, 2 * n if every is None or not sized else n))
    if every is not None and sized:
        interval = data.draw(st.one_of(st.just(interval), st.floats(0.01, 1.0)))
    steps = data.draw(st.one_of(st.just(-1), st.integers(1, n * epochs))) if accumulate == 1 else -1
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*an accumulation window", UserWarning)
        found = validations(
            n,
            batches(n) if sized else Unsized(n),
            max_epochs=epochs,
            max_steps=steps,
            val_check_interval=interval,
            check_val_every_n_epoch=every,
            accumulate_grad_batches=accumulate,
        )
    assert found == by_hand(n, epochs, interval, every, steps, accumulate)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_loader_of_unknown_length_is_validated_at_its_end(accumulate: int) -> None:
    """With the default interval validation follows the last batch, found out when the data ends."""
    assert validations(0, Unsized(4), max_epochs=2, accumulate_grad_batches=accumulate) == [4, 8]
    assert validations(0, Unsized(4), max_epochs=2, check_val_every_n_epoch=2) == [8]
    assert validations(0, Unsized(9), max_epochs=2, limit_train_batches=3) == [3, 6]


def test_the_last_part_of_an_epoch_is_not_validated_for_its_own_sake() -> None:
    """A third of ten batches is three: validations follow 3, 6 and 9, none follows 10."""
    assert validations(10, val_check_interval=0.3) == [3, 6, 9]


@pytest.mark.parametrize("interval", [{"seconds": 2.5}, timedelta(seconds=2.5), "00:00:00:02"])
def test_validation_by_the_clock(interval: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval of time counts from the start of training, then from the start of each validation."""
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Slow(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            clock[0] += 1.0

    net = Slow()
    flags = {"check_val_every_n_epoch": None, "val_check_interval": interval, "max_epochs": 2}
    trainer(**flags).fit(net, batches(5), batches(1))
    # The validation's own second counts: then two more training seconds are enough for 2.5, and one for 2.
    assert net.validations == ([3, 5, 7, 9] if interval != "00:00:00:02" else [2, 3, 4, 5, 6, 7, 8, 9, 10])


def test_validate_at_start() -> None:
    """validate_at_start runs one whole validation before the first step, whose metrics are kept."""
    net = Net()
    run = trainer(validate_at_start=True, max_steps=1)
    seen: list[Any] = []
    run.on("train_start")(lambda: seen.append(dict(run.callback_metrics)))
    run.on("train_batch_start", once=1)(lambda: seen.append(dict(run.callback_metrics)))
    run.fit(net, batches(3), batches(3))
    assert net.validations == [0]
    assert seen == [{}, {"val": torch.tensor(1.0)}]


# ------------------------------------------------------------------ the sanity check


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"num_sanity_val_steps": None}, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ({"num_sanity_val_steps": 0}, []),
        ({"num_sanity_val_steps": 1}, [(0, 0), (1, 0)]),
        ({"num_sanity_val_steps": -1}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
        ({"num_sanity_val_steps": 9}, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]),
        ({"num_sanity_val_steps": 2, "limit_val_batches": 1}, [(0, 0), (1, 0)]),
        ({"num_sanity_val_steps": 2, "limit_val_batches": 0}, []),
        ({"num_sanity_val_steps": 2, "fast_dev_run": True}, []),
    ],
)
def test_sanity_check_runs_some_batches_of_each_loader(flags: dict[str, Any], expected: list[Any]) -> None:
    """The first batches of every validation loader run before training, and leave no metric behind."""
    net = Net()
    run = trainer(**flags)
    kept: list[Any] = []
    run.on("train_start")(lambda: kept.append((dict(run.callback_metrics), dict(run.logged_metrics), net.training)))
    run.fit(net, batches(2), [DataLoader(range(n)) for n in (3, 2)])  # type: ignore[arg-type]
    assert net.sanity == expected
    assert kept == [({}, {}, True)]


def test_the_sanity_check_changes_no_random_number() -> None:
    """What training draws is the same with and without a sanity check that draws too."""

    class Draws(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            torch.rand(3)

        def on_train_start(self) -> None:
            self.drawn = torch.rand(3)

    drawn = []
    for steps in (0, 2):
        torch.manual_seed(1)
        net = Draws()
        trainer(num_sanity_val_steps=steps).fit(net, batches(1), batches(2))
        drawn.append(net.drawn)
    assert torch.equal(*drawn)


def test_an_error_in_validation_shows_before_training() -> None:
    """A validation_step that fails does so in the sanity check, before any training batch."""

    class Broken(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            raise RuntimeError("broken")

    net = Broken()
    with pytest.raises(RuntimeError, match="broken"):
        trainer(num_sanity_val_steps=1).fit(net, batches(1), batches(2))
    assert net.done == 0


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("flags", "trained", "validated"),
    [
        ({"limit_train_batches": 3, "limit_val_batches": 2}, 3, 2),
        ({"limit_train_batches": 0.25, "limit_val_batches": 0.5}, 2, 2),
        ({"limit_train_batches": 100, "limit_val_batches": 100}, 8, 5),
        ({"limit_train_batches": 1.0, "limit_val_batches": 1.0}, 8, 5),
        ({"limit_train_batches": 0, "limit_val_batches": 1}, 0, 0),
        ({"limit_val_batches": 0}, 8, 0),
        ({"overfit_batches": 3}, 3, 3),
        ({"overfit_batches": 0.5}, 4, 2),
        ({"fast_dev_run": True, "max_epochs": None}, 1, 1),
        ({"fast_dev_run": 3, "max_epochs": None}, 3, 3),
        ({"max_epochs": 0}, 0, 0),
    ],
)
def test_limits(flags: dict[str, Any], trained: int, validated: int) -> None:
    """Limits are batches (integers) or fractions (floats), for training and validation each."""
    net = Net()
    trainer(**flags).fit(net, batches(8), batches(5))
    assert (net.done, len(net.seen)) == (trained, validated)


def test_overfit_batches_trains_on_the_first_batches_in_order() -> None:
    """A shuffling loader gives its first samples in order, in training, with a warning."""

    class Sees(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert batch.flatten().tolist() == [2.0 * batch_idx, 2.0 * batch_idx + 1]
            return super().training_step(batch, batch_idx)

    data: Any = DataLoader(torch.arange(10.0).view(10, 1), batch_size=2, shuffle=True)  # type: ignore[arg-type]
    net = Sees()
    with pytest.warns(UserWarning, match="overfit_batches"):
        trainer(overfit_batches=2, max_epochs=2).fit(net, data, batches(1))
    assert net.done == 4


@pytest.mark.parametrize(
    ("flags", "loader", "message"),
    [
        ({"val_check_interval": 4}, batches(3), r"Trainer(val_check_interval=4): this must be at most the 3 training"),
        ({"val_check_interval": 0.5}, Unsized(3), "a fraction needs a training loader whose length is known"),
        ({"limit_train_batches": 0.1}, batches(3), "a fraction of 3 batches must be at least one. Got limit 0.1."),
        ({"limit_train_batches": 0.5}, Unsized(3), "a fraction needs a loader of known length. Got limit 0.5."),
    ],
)
def test_intervals_and_limits_that_the_data_can_not_keep(flags: dict[str, Any], loader: Any, message: str) -> None:
    """An interval longer than the epoch, or a fraction of an unknown length, is refused before the first batch."""
    net = Net()
    with pytest.raises(ConfigError) as caught:
        trainer(**flags).fit(net, loader, batches(1))
    assert message in str(caught.value)
    assert net.done == 0


# ------------------------------------------------------------------ accumulation windows


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"val_check_interval": 4}, [6, 9]),
        ({"val_check_interval": 3}, [3, 6, 9]),
        ({"val_check_interval": 2}, [3, 6, 9]),
        ({"val_check_interval": 1}, [3, 6, 9]),
        ({"val_check_interval": 8}, [9]),
        ({"val_check_interval": 4, "max_epochs": 2}, [6, 9, 15, 18]),
        ({"val_check_interval": 5, "check_val_every_n_epoch": None, "max_epochs": 2}, [6, 12, 15]),
        ({"val_check_interval": 4, "automatic": False}, [4, 8]),
        ({"val_check_interval": 4, "optimizers": False}, [4, 8]),
    ],
)
@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.filterwarnings("ignore:.*an accumulation window", "ignore:.*configure_optimizers returned None")
def test_validation_waits_for_the_window_to_close(flags: dict[str, Any], expected: list[int], sized: bool) -> None:
    """Due inside a window it runs at its end, two of one window are one, and the next is counted as ever."""
    flags = dict(flags)
    automatic, optimizers = flags.pop("automatic", True), flags.pop("optimizers", True)
    net = Net()
    net.automatic_optimization = automatic
    if not optimizers:
        net.configure_optimizers = lambda: None  # type: ignore[method-assign]
    window = 3 if automatic else 1
    run = trainer(accumulate_grad_batches=window, **{"max_epochs": 1, **flags})
    run.fit(net, batches(9) if sized else Unsized(9), batches(1))
    assert net.validations == expected


def test_what_was_validated_is_what_is_saved(tmp_path: Any) -> None:
    """Validating the best file gives the best score."""

    class Scores(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("score", sum(p.double().sum() for p in self.parameters()))

    saving = ModelCheckpoint(tmp_path, monitor="score", save_top_k=-1)
    run = trainer(
        accumulate_grad_batches=3, val_check_interval=4, max_epochs=1, callbacks=[saving], enable_checkpointing=True
    )
    run.fit(Scores(), batches(9), batches(1))
    assert len(saving.best_k_models) == 2
    for path, score in saving.best_k_models.items():
        (found,) = run.validate(Scores(), batches(1), ckpt_path=path, verbose=False)
        assert found["score"] == pytest.approx(float(score))


def test_an_interval_below_the_window_is_warned_of_once() -> None:
    """It cannot be kept; one that is longer and no multiple can."""
    with pytest.warns(UserWarning, match=r"val_check_interval=2\).*every 2 batches .* window of 3") as caught:
        validations(9, val_check_interval=2, accumulate_grad_batches=3, max_epochs=2)
    assert len(caught) == 1
    validations(9, val_check_interval=4, accumulate_grad_batches=3)


# ------------------------------------------------------------------ reloading


@pytest.mark.parametrize("resumed_at", [None, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("every", [1, 2, 3])
def test_no_loader_is_used_when_it_should_have_been_made_anew(
    n: int, every: int, resumed_at: int | None, tmp_path: Any
) -> None:
    """Each epoch's loaders were made in its own n epochs, whenever validation runs, and after a resume as well."""
    made, used = {"train": -1, "val": -1}, []

    class Loads(Net):
        def train_dataloader(self) -> Any:
            made["train"] = self.current_epoch
            return batches(1)

        def val_dataloader(self) -> Any:
            made["val"] = self.current_epoch
            return batches(1)

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            used.append((self.current_epoch, made["train"]))

        def on_validation_start(self) -> None:
            used.append((self.current_epoch, made["val"]))

    flags: dict[str, Any] = {"reload_dataloaders_every_n_epochs": n, "check_val_every_n_epoch": every}
    path = None
    if resumed_at is not None:
        run, path = trainer(max_epochs=resumed_at, **flags), tmp_path / "a.ckpt"
        run.fit(Loads())
        run.save_checkpoint(path)
    trainer(max_epochs=6, **flags).fit(Loads(), ckpt_path=path)
    assert [(now, then) for now, then in used if now // n != then // n] == []
    assert [now for now, _ in used if now == 5] == [5] * (2 if 6 % every == 0 else 1)


@pytest.mark.parametrize(
    ("every", "train", "val"), [(0, [0], [0]), (1, [0, 1, 2, 3], [0, 1, 2, 3]), (2, [0, 2], [0, 2])]
)
def test_loader_hooks_are_called_again_every_n_epochs(every: int, train: list[int], val: list[int]) -> None:
    """reload_dataloaders_every_n_epochs calls both hooks anew in each n-th epoch, else once."""
    calls: dict[str, list[int]] = {"train": [], "val": []}

    class Loads(Net):
        def train_dataloader(self) -> Any:
            calls["train"].append(self.current_epoch)
            return batches(2)

        def val_dataloader(self) -> Any:
            calls["val"].append(self.current_epoch)
            return batches(2)

    net = Loads()
    trainer(max_epochs=4, reload_dataloaders_every_n_epochs=every, val_check_interval=1).fit(net)
    assert calls == {"train": train, "val": val}
    assert len(net.validations) == 8
