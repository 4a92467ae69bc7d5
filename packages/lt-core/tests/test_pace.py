"""The last line of a long training says what bound it, at no call a step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from late_device import LateAccelerator
from planted import SLOW, Net, loader, pause
from quiet import QUIET

from lt_core import Callback, Trainer
from lt_core.callbacks import ModelCheckpoint


class SlowStep(Net):
    """Module whose steps take long."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        pause(SLOW)
        return super().training_step(batch, batch_idx)


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Take trainings of a tenth of a second for long ones, by a clock that only pauses move; read what is said."""
    passed = 0.0

    def sleep(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.perf_counter", lambda: passed)
    monkeypatch.setattr("lt_core.run.ending.LONG", 0.1)
    caplog.set_level(logging.INFO, logger="lt_core")
    return caplog


def end_of(caplog: pytest.LogCaptureFixture, module: Any, data: Any, **flags: Any) -> str:
    """Return the last line about a training."""
    Trainer(**{**QUIET, "max_epochs": 1, "limit_val_batches": 0, **flags}).fit(module, data)
    return caplog.messages[-1]


def test_a_slow_loader_is_input_bound(long: pytest.LogCaptureFixture) -> None:
    """Where the loop mostly waits for batches, the line says so with the number of workers."""
    line = end_of(long, Net(), loader(seconds=SLOW))
    assert "Input-bound: " in line
    assert "num_workers is 0" in line
    assert 'profiler="simple"' in line


def test_a_slow_source_without_workers(long: pytest.LogCaptureFixture) -> None:
    """Of batches that come from no DataLoader no workers are named; their number need not be known."""

    def batches() -> Any:
        for batch in loader():
            pause(SLOW)
            yield batch

    line = end_of(long, Net(), batches, max_steps=8, max_epochs=-1)
    assert "Input-bound: " in line
    assert "num_workers" not in line


def test_slow_batch_hooks_are_transfer_bound(long: pytest.LogCaptureFixture) -> None:
    """Where the loop mostly runs transfer hooks, the line says so."""
    assert "Transfer-bound: " in end_of(long, Net(transform=SLOW), loader())


def test_slow_steps_are_compute_bound(long: pytest.LogCaptureFixture) -> None:
    """Where the loop is mostly in steps, the line says so."""
    assert "Compute-bound: " in end_of(long, SlowStep(), loader())


def test_validation_is_no_part_of_it(long: pytest.LogCaptureFixture) -> None:
    """Slow validations between slow batches leave an input-bound training what it is."""
    module = Net(validation=SLOW)
    Trainer(**QUIET, max_epochs=1, val_check_interval=2).fit(module, loader(seconds=SLOW), loader(4))
    assert "Input-bound: " in long.messages[-1]


def test_nothing_is_said_where_nothing_is_clear(long: pytest.LogCaptureFixture) -> None:
    """Half of the time in steps and half in waiting is neither."""
    assert "-bound" not in end_of(long, SlowStep(), loader(seconds=SLOW))


def test_nothing_is_said_of_a_short_training(caplog: pytest.LogCaptureFixture) -> None:
    """What takes less than a minute is not worth a word."""
    caplog.set_level(logging.INFO, logger="lt_core")
    line = end_of(caplog, Net(), loader(seconds=SLOW))
    assert "stopped" in line
    assert "-bound" not in line


def test_it_is_said_after_ctrl_c(long: pytest.LogCaptureFixture) -> None:
    """A training that is interrupted says what bound it until then."""

    class Interrupts(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        end_of(long, Net(), loader(seconds=SLOW), callbacks=[Interrupts()])
    assert "Input-bound: " in long.messages[-1]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_steps_before_an_error_count(
    long: pytest.LogCaptureFixture, tmp_path: Path, error: type[BaseException]
) -> None:
    """A training of slow steps that ends in mid-epoch is called compute-bound, although its loader takes time too."""

    class Fails(SlowStep):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 6:
                raise error
            return super().training_step(batch, batch_idx)

    save = ModelCheckpoint(dirpath=tmp_path, save_on_exception=True)
    with pytest.raises(error):
        end_of(long, Fails(), loader(seconds=SLOW / 4), callbacks=[save], enable_checkpointing=True)
    assert "Compute-bound: " in next(line for line in long.messages if "stopped" in line)


def test_a_device_with_a_side_stream_names_its_input(long: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Where batches are put on the device while they are fetched, the waiting is still told from the moving."""

    class Plain(Net):
        on_after_batch_transfer = None  # type: ignore[assignment]

    torch.manual_seed(0)
    assert "Input-bound: " in end_of(long, Plain(), loader(seconds=SLOW), accelerator=LateAccelerator())
