"""Output goes to whatever standard output and standard error are, and none of it ends a run."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import ModelSummary, RichModelSummary, RichProgressBar
from lt_core.notices import info, is_terminal, say, warn
from lt_core.profilers import Profiler

DATA = [torch.full((1, 1), float(v)) for v in range(3)]


class Tee:
    """Stream with what a program's own class usually has, and no more."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class Terminal(Tee):
    """Stream that takes itself for a terminal, and has neither an encoding nor a number."""

    def isatty(self) -> bool:
        return True


class Deaf(Terminal):
    """Terminal that fails at each word."""

    def write(self, text: str) -> None:
        raise RuntimeError("nobody is there")


class Undecided(Tee):
    """Stream that cannot say what it is."""

    def isatty(self) -> bool:
        raise io.UnsupportedOperation("isatty")


class OnlyWrite:
    """Stream without anything but ``write``."""

    def write(self, text: str) -> None:
        pass


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class Full(Tee):
    """Stream to a disk that takes no more."""

    def write(self, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    flush = write  # type: ignore[assignment]


STREAMS: dict[str, Callable[[], Any]] = {
    "tee": Tee,
    "terminal": Terminal,
    "deaf": Deaf,
    "undecided": Undecided,
    "only write": OnlyWrite,
    "closed": closed,
    "full": Full,
    "none": lambda: None,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True),
}


class Net(LightningModule):
    """Module whose metric's name no small encoding holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.log("verlüst", batch.mean(), prog_bar=True)
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("größe", batch.mean(), prog_bar=True)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:RichProgressBar|TQDMProgressBar")
@pytest.mark.parametrize("error_too", [False, True], ids=["stdout", "stdout and stderr"])
@pytest.mark.parametrize("kind", list(STREAMS))
def test_no_stream_ends_a_run(kind: str, error_too: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bar, summary and tables are written to any stream, or left out; fit, validate and test end well."""
    monkeypatch.setattr(sys, "stdout", stream := STREAMS[kind]())
    if error_too:
        monkeypatch.setattr(sys, "stderr", stream)
    callbacks = [RichModelSummary(), RichProgressBar(refresh_rate=1)] if error_too else [ModelSummary()]
    trainer = Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, callbacks=callbacks, default_root_dir=tmp_path,
        accelerator="cpu", devices=1,
    )  # fmt: skip
    trainer.fit(Net(), DATA, DATA)
    assert trainer.validate(Net(), DATA) == trainer.test(Net(), DATA) == [{"größe": 1.0}]
    assert trainer.global_step == 3
    if kind == "ascii":
        assert b"gr??e" in stream.buffer.getvalue()


def test_a_tee_gets_the_results() -> None:
    """A stream that has only ``write`` and ``flush`` holds what a file would: lines."""
    tee = Tee()
    assert not is_terminal(tee)
    say("one", tee)
    assert tee.text == "one\n"


def test_reports_and_notices_to_a_closed_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of information, a warning and a profiler's report end nothing where nobody can read them."""
    import warnings

    monkeypatch.setattr(sys, "stdout", closed())
    monkeypatch.setattr(sys, "stderr", closed())
    monkeypatch.setattr(Profiler, "summary", lambda self: "seconds", raising=False)
    info("a line")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "_showwarnmsg_impl", lambda message: sys.stderr.write("a warning"))
        warn("a warning")
    with pytest.warns(UserWarning, match="still heard"):
        warn("still heard")
