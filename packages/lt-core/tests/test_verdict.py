"""A profiled run ends with what it waited for, and what to do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import planted
import pytest
from planted import SLOW, Net, SlowLogger, fit, loader

from lt_core import Callback, Trainer
from lt_core.profilers import SimpleProfiler, Verdict


def verdict(trainer: Trainer) -> Verdict:
    found: Verdict = trainer.profiler.verdict()
    return found


@pytest.mark.parametrize(
    ("job", "bottleneck", "advice"),
    [
        (planted.slow_loader, "data", "raise num_workers (now 0)"),
        (planted.slow_transform, "transform", "move the transform into the dataset"),
        (planted.tiny_batches, "batch size", "raise batch_size (now 1)"),
        (planted.big_logging, "logging", "raise log_every_n_steps (now 1)"),
        (planted.slow_validation, "validation", "check_val_every_n_epoch (now 1)"),
        (planted.slow_saves, "saving", "AsyncCheckpointIO()"),
    ],
)
def test_the_slow_part_is_named(tmp_path: Path, job: Callable[[Path], Trainer], bottleneck: str, advice: str) -> None:
    """Whatever a training waits for, the verdict names it, and says what changes it."""
    found = verdict(job(tmp_path))
    assert found["bottleneck"] == bottleneck, str(found)
    assert advice in found["text"]
    assert str(found) in (tmp_path / "fit-simple-0.txt").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "fit-simple-0.json").read_text(encoding="utf-8")) == found


def test_shares_are_of_the_time_after_the_setup(tmp_path: Path) -> None:
    """Each second after the setup belongs to one phase, so that the shares make one."""
    found = verdict(planted.slow_loader(tmp_path))
    assert found["share"] == found["phases"]["data"]["share"] > 0.5
    assert sum(p["share"] for name, p in found["phases"].items() if name != "setup") == pytest.approx(1)
    assert sum(p["seconds"] for p in found["phases"].values()) == pytest.approx(found["seconds"])
    assert found["facts"]["batch_size"] == 16


class Sleeps(Callback):
    """Callback that takes its time after each batch."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        time.sleep(SLOW)


def test_a_slow_hook_is_named(tmp_path: Path) -> None:
    """A hook that takes most of the time is named with its owner, a callback's or the module's."""
    found = verdict(fit(tmp_path, Net(), loader(), callbacks=[Sleeps()]))
    assert (found["bottleneck"], "Sleeps.on_train_batch_end" in found["text"]) == ("hooks", True)
    assert "Net.on_train_batch_end" in verdict(fit(tmp_path, Net(hook=SLOW), loader()))["text"]


class Saves(Callback):
    """Callback that saves after each batch, to a slow disk."""

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "now.ckpt")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        time.sleep(SLOW)


def test_a_save_inside_a_hook_is_saving(tmp_path: Path) -> None:
    """What trainer.save_checkpoint takes in a hook is no fault of the hook."""
    assert verdict(fit(tmp_path, Net(), loader(), callbacks=[Saves()]))["bottleneck"] == "saving"


def test_a_slow_logger_is_waited_for_at_the_end(tmp_path: Path) -> None:
    """A logger that is behind when training ends is logging too, and is said to be slower."""
    found = verdict(fit(tmp_path, Net(logs=1), loader(), logger=SlowLogger(), log_every_n_steps=1))
    assert (found["bottleneck"], "slower than the loop" in found["text"]) == ("logging", True)


def test_data_that_comes_from_no_loader(tmp_path: Path) -> None:
    """Where batches come from no DataLoader, the advice is to give one."""

    class Slow:
        def __iter__(self) -> Any:
            for batch in loader():
                time.sleep(SLOW)
                yield batch

    found = verdict(fit(tmp_path, Net(), Slow()))
    assert (found["bottleneck"], "give a DataLoader" in found["text"]) == ("data", True)


def test_data_with_all_workers(tmp_path: Path) -> None:
    """Where there are as many workers as cores, no more of them are asked for."""
    profiler = SimpleProfiler()
    fit(tmp_path, Net(), loader(seconds=SLOW), profiler)
    profiler.take_facts({"num_workers": 4, "cores": 4})
    assert "num_workers is 4 on 4 cores" in profiler.verdict()["text"]
    profiler.take_facts({"num_workers": 2, "cores": 4})
    assert "raise num_workers (now 2, of 4 cores)" in profiler.verdict()["text"]


def test_workers_that_are_started_each_epoch(tmp_path: Path) -> None:
    """Where most of the waiting is for each epoch's first batch, workers should persist."""
    profiler = SimpleProfiler()
    profiler.setup("fit")
    for _ in range(2):
        with profiler.profile("run_training_epoch"):
            for seconds in (SLOW, 0, 0):
                with profiler.profile("[_TrainingEpochLoop].train_dataloader_next"):
                    time.sleep(seconds)
    profiler.take_facts({"num_workers": 2, "cores": 8, "persistent_workers": False})
    assert "persistent_workers=True" in profiler.verdict()["text"]


def test_without_a_run_nothing_is_claimed() -> None:
    """Before a run, and where other processes run it, the verdict is that nothing was measured."""
    profiler = SimpleProfiler()
    with profiler.profile("[LightningModule]Net.configure_callbacks"):
        pass
    assert (profiler.verdict()["bottleneck"], profiler.verdict()["text"]) == ("nothing", "nothing was measured.")


def test_an_evaluation_has_a_verdict_of_its_own(tmp_path: Path) -> None:
    """In validate, test and predict the step is the computing, and waiting for data is found as in fit."""
    profiler = SimpleProfiler()
    trainer = Trainer(**planted.SILENT, max_epochs=1, logger=False, profiler=profiler, default_root_dir=tmp_path)
    trainer.validate(Net(validation=SLOW), loader(), verbose=False)
    assert verdict(trainer)["bottleneck"] == "computing"
    trainer.validate(Net(), loader(seconds=SLOW), verbose=False)
    assert (verdict(trainer)["bottleneck"], verdict(trainer)["stage"]) == ("data", "validate")


def test_what_lies_in_a_validation_is_the_validation_s(tmp_path: Path) -> None:
    """Waiting for data inside the validation of a fit counts as validation, which says so."""
    found = verdict(fit(tmp_path, Net(), loader(), val=loader(seconds=SLOW)))
    assert (found["bottleneck"], "is waiting for data" in found["text"]) == ("validation", True)
