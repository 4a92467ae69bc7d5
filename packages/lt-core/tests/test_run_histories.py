"""Random histories of runs in one folder or in versions, against a small model of which run is gone on with."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quiet import SILENT
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.checkpoint import peek, runs
from lt_core.loggers import CSVLogger

DATA = torch.ones(2, 1).unbind()


class StopError(Exception):
    """Error that ends a fit, or stands for the end of its process."""


class Net(LightningModule):
    """Module that notes with how many steps it began, and raises after so many of its own."""

    def __init__(self, steps: int, fails: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.left, self.fails, self.began = steps, fails, -1

    def on_train_start(self) -> None:
        self.began = self.trainer.global_step
        if not self.fails:
            self.trainer.max_steps = self.began + self.left

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if not self.left and self.fails:
            raise StopError
        self.left -= 1
        return self.layer(batch).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@dataclass
class ModelRun:
    """What the rule knows of a run: when it was last begun, by which fit of a process, how it ended, its steps."""

    start: int
    ordinal: int
    status: str = "running"
    origins: list[tuple[int, int]] = field(default_factory=list)  # (start, with how many steps)
    files: list[tuple[int, int]] = field(default_factory=list)  # (start, steps)

    def newest(self) -> int:
        """Return the most steps of a file that lies before each place the run was brought back to later."""
        valid = [s for start, s in self.files if all(s <= at for later, at in self.origins if later > start)]
        return max(valid or [s for _, s in self.files])


class Rule:
    """The rule of "last" and "auto", in a few lines."""

    def __init__(self) -> None:
        self.runs: list[ModelRun] = []
        self.now, self.fits_done = 0, 0

    def begins(self, word: str | None) -> tuple[ModelRun, int]:
        """Return the run that a fit goes on with, a new one or not, and with how many steps."""
        there = sorted((run for run in self.runs if run.files), key=lambda run: run.start)
        if word == "auto":
            there = [run for run in there if run.ordinal == self.fits_done + 1]
            there = there if there and there[-1].status != "finished" else []
        if word is None or not there:
            self.runs.append(ModelRun(0, 0))
            return self.runs[-1], 0
        return there[-1], there[-1].newest()

    def fit(self, run: ModelRun, began: int, steps: int, end: str) -> None:
        """Note a fit of some steps, each saved, and how it ended."""
        self.now += 1
        run.start, run.ordinal, run.status = self.now, self.fits_done + 1, "running"
        run.origins.append((self.now, began))
        run.files += [(self.now, step) for step in range(began + 1, began + steps + 1)]
        run.status = {"killed": "running", "stopped": "stopped"}.get(end, "finished")
        self.fits_done += end == "finished"
        if end == "killed":
            self.fits_done = 0


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["last", "auto", "auto", None, "path"]),
        st.integers(0, 3),
        st.sampled_from(["finished", "stopped", "killed"]),
        st.booleans(),  # whether the program is started anew behind it
    ),
    min_size=2,
    max_size=7,
)


def play(root: Path, calls: list[tuple[str | None, int, str, bool]], versions: bool, patch: pytest.MonkeyPatch) -> None:
    """Make real fits, each saving at each step, and compare where each began, and under which id, with the rule."""
    rule = Rule()
    ids: dict[str, ModelRun] = {}
    patch.setattr(runs, "_fits", Counter())
    for word, steps, end, starts_anew in calls:
        where: Any = word
        if word == "path":
            files = sorted(root.rglob("*.ckpt"))
            where = None if not files else files[steps % len(files)]
        if isinstance(where, Path):
            header = peek(where)
            run, began = ids[header["run"]["id"]], header["progress"]["step"]
        else:
            run, began = rule.begins(where)
        with patch.context() as inner:
            if end == "killed":  # the locks go with the process, and nobody writes down how it ended
                inner.setattr(runs.RunRecord, "_write", _write_begin_alone)
            net = Net(steps, fails=end != "finished")
            saver = ModelCheckpoint(None, "{step}", every_n_train_steps=1, save_top_k=-1)
            trainer = Trainer(
                **SILENT,
                default_root_dir=root,
                logger=CSVLogger(root) if versions else False,
                max_epochs=-1,
                max_steps=-1 if end != "finished" else 1000,
                callbacks=[saver],
            )
            with suppress(StopError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trainer.fit(net, DATA, ckpt_path=where)
        assert net.began == began, (calls, word)
        assert trainer._run_id is not None
        assert ids.setdefault(trainer._run_id, run) is run
        rule.fit(run, began, steps, end)
        if starts_anew or end == "killed":
            runs._fits.clear()
            rule.fits_done = 0


_write = runs.RunRecord._write


def _write_begin_alone(self: runs.RunRecord, status: str) -> None:
    if status == "running":
        _write(self, status)


@pytest.mark.parametrize("versions", [False, True], ids=["one folder", "versions"])
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=CALLS)
def test_each_fit_goes_on_with_the_run_that_the_rule_names(versions: bool, calls: list[Any]) -> None:
    """Killed, stopped and finished, in folds and started anew, brought back by a path: a few histories."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        play(Path(root), calls, versions, patch)


@pytest.mark.slow
@pytest.mark.parametrize("versions", [False, True], ids=["one folder", "versions"])
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(calls=CALLS)
def test_each_of_many_fits_goes_on_with_the_run_that_the_rule_names(versions: bool, calls: list[Any]) -> None:
    """The same over many histories."""
    with tempfile.TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        play(Path(root), calls, versions, patch)
