"""The last line of a fit on several ranks: rank 0 writes it once, and the process that launched them has the reason."""

from __future__ import annotations

import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint

FLAGS: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 2,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
}


class Net(LightningModule):
    """Module that acts on one rank, in its third step."""

    def __init__(self, act: Callable[[Any], Any] | None = None, rank: int = 0) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self.layer, self.act, self.rank = nn.Linear(1, 1), act, rank

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.act is not None and self.global_step == 2 and self.global_rank == self.rank:
            self.act(self)
        self.log("loss", 1.0, on_step=False, on_epoch=True, sync_dist=True)
        return self.layer(batch).square().sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(autouse=True)
def _as_in_a_program(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Bring what forked ranks log to the standard error, as where no logging is configured; it is pytest's else."""
    errors = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - as long as the handler
    log, handler = logging.getLogger("lt_core"), logging.StreamHandler(errors)
    log.addHandler(handler)
    log.setLevel("INFO")
    yield
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)
    handler.stream.close()


def ask(net: Any) -> None:
    net.trainer.should_stop = True


def interrupt(net: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def ends(capfd: pytest.CaptureFixture[str], net: Net, **flags: Any) -> tuple[Trainer, list[str]]:
    """Fit on two ranks, and return the trainer of this process and the lines about the end, of all of them."""
    trainer = Trainer(**{**FLAGS, "strategy": "ddp_fork", "max_epochs": 2, "enable_checkpointing": False, **flags})
    with suppress(KeyboardInterrupt, RuntimeError):
        trainer.fit(net, [torch.ones(1, 1)] * 4)
    return trainer, re.findall(r"^`Trainer\.fit` stopped: .*", capfd.readouterr().err, re.MULTILINE)


@pytest.mark.parametrize("strategy", ["ddp_fork", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_a_limit(capfd: pytest.CaptureFixture[str], strategy: str) -> None:
    """One line, and the limit in the process that called fit, whose ranks were forked or new interpreters."""
    trainer, lines = ends(capfd, Net(), strategy=strategy)
    assert trainer.stop_reason == "max_epochs"
    assert lines == ["`Trainer.fit` stopped: `max_epochs=2` reached. At the end of epoch 1, step 8."]


@pytest.mark.parametrize(
    ("rank", "reason"),
    [(0, r"should_stop: in ask \(test_rank_endings.py:\d+\)"), (1, "should_stop: on another rank")],
)
def test_who_stops(capfd: pytest.CaptureFixture[str], rank: int, reason: str) -> None:
    """A stop that rank 0 asks for is named with its place; one of another rank is that of another rank."""
    trainer, lines = ends(capfd, Net(ask, rank))
    assert re.fullmatch(reason, str(trainer.stop_reason))
    assert len(lines) == 1
    assert trainer.should_stop


def test_early_stopping(capfd: pytest.CaptureFixture[str]) -> None:
    """Early stopping is named with its metric."""
    trainer, lines = ends(capfd, Net(), max_epochs=9, callbacks=[EarlyStopping("loss", patience=1)])
    assert str(trainer.stop_reason).startswith("EarlyStopping: loss did not improve in the last 1 looks")
    assert len(lines) == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal(capfd: pytest.CaptureFixture[str], tmp_path: Path, rank: int) -> None:
    """Ctrl-C in any rank is one line, with the call that resumes from a file that is there."""
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    trainer, [line] = ends(capfd, Net(interrupt, rank), callbacks=[saves], enable_checkpointing=True)
    assert trainer.stop_reason == "signal: SIGINT"
    found = re.search(r'ckpt_path="(.+)"\)', line)
    assert found, line
    assert Path(found[1]).exists()
