"""What stands on a terminal: lines in which no name and no number is broken, and one for each epoch that is over."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from typing import Any

import pytest
import torch
from quiet import QUIET
from rich.cells import cell_len
from rich.progress import BarColumn, TextColumn
from torch import Tensor, nn

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, RichProgressBar
from lt_core.callbacks.progress import RichProgressBarTheme

DATA = [torch.ones(1, 1)] * 16
NINE = [f"group_{i}/{'long_' * (i % 3)}name" for i in range(8)]
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal(io.StringIO):
    """Terminal that keeps what was drawn on it."""

    def isatty(self) -> bool:
        return True


class Screen:
    """What a terminal shows: control sequences that move the cursor and erase lines are carried out."""

    def __init__(self, drawn: str) -> None:
        self.lines, row, at = [""], 0, 0
        while at < len(drawn):
            if found := CONTROL.match(drawn, at):
                at, code = found.end(), found.group()
                if code.endswith("A"):
                    row = max(row - int(code[2:-1] or 1), 0)
                elif code.endswith("K"):
                    self.lines[row] = ""
                continue
            if drawn[at] == "\n":
                row += 1
                self.lines += [""] * (row == len(self.lines))
            elif drawn[at] != "\r":
                self.lines[row] += drawn[at]
            at += 1
        self.lines = [line.rstrip() for line in self.lines if line.strip()]


class Net(LightningModule):
    """Module that shows metrics by given names, each batch with the same number."""

    def __init__(self, names: list[str], clock: list[float]) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.names, self.clock = names, clock

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock[0] += 0.25
        for name in self.names:
            self.log(name, 0.125, prog_bar=True)
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock[0] += 0.125
        self.log("val_loss", 0.5, prog_bar=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class MeantError(Exception):
    """Error that a test wants."""


class Frames(Callback):
    """What stands on the terminal after each batch."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal, self.frames = terminal, list[list[str]]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.frames.append(Screen(self.terminal.getvalue()).lines)

    on_validation_batch_end = on_train_batch_end


def shown(
    width: int,
    names: list[str],
    epochs: int = 3,
    net: type[Net] = Net,
    bar: type[RichProgressBar] = RichProgressBar,
    stop: Callback | None = None,
    **given: Any,
) -> tuple[list[list[str]], list[str]]:
    """Return what a terminal shows after each batch, and in the end; an error that is meant is caught."""
    terminal, clock = Terminal(), [0.0]
    one = bar(console_kwargs={"file": terminal, "width": width, "force_terminal": True, "color_system": None}, **given)
    one._clock = lambda: clock[0]
    frames = Frames(terminal)
    callbacks = [one, frames] if stop is None else [one, frames, stop]
    flags = QUIET | {"enable_progress_bar": True, "max_epochs": epochs, "num_sanity_val_steps": 0}
    with suppress(MeantError):
        Trainer(**flags, callbacks=callbacks).fit(net(names, clock), DATA, DATA[:8])
    drawn = terminal.getvalue()
    assert drawn.rfind("\x1b[?25h") >= drawn.rfind("\x1b[?25l")  # the cursor is shown again
    return frames.frames, Screen(terminal.getvalue()).lines


def tokens(lines: list[str]) -> list[str]:
    """Return the words of lines that are metrics."""
    return [word for line in lines for word in line.split() if "=" in word or word.startswith("+")]


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140, 200])
def test_no_name_and_no_number_is_broken(width: int) -> None:
    """With nine metrics each word is whole or left out and counted, at any moment and width, in three lines at most."""
    frames, end = shown(width, NINE, epochs=2)
    whole = {f"{name}=0.125" for name in NINE} | {"val_loss=0.500"}
    for lines in [*frames, end]:
        assert all(cell_len(line) <= width for line in lines)
        assert set(tokens(lines)) - whole <= {f"+{number}" for number in range(1, 10)}
    for lines in frames:
        bars = [line for line in lines if "━" in line]
        if bars:
            assert len(lines) - lines.index(bars[0]) <= 3
    # Of all nine, those that are not there are counted.
    last = next(lines for lines in reversed(frames) if "Validation" in " ".join(lines))
    drawn = tokens(last[next(i for i, line in enumerate(last) if "━" in line) :])
    assert sum(int(word[1:]) if word.startswith("+") else 1 for word in drawn) == 9


def test_nine_metrics_at_eighty_columns() -> None:
    """The bar and two lines of metrics; validation takes the second one, and what is missing is counted."""
    frames, _ = shown(80, [f"metric_{i}/accuracy" for i in range(8)], epochs=2)
    assert frames[24 + 8][-3:] == [
        "Epoch 1/1 ━━━━━━━━━╸        9/16 0:02 elapsed, 0:02 left, run 0:02 left 4.0 it/s",
        "metric_0/accuracy=0.125 metric_1/accuracy=0.125 metric_2/accuracy=0.125",
        "metric_3/accuracy=0.125 metric_4/accuracy=0.125 metric_5/accuracy=0.125 +3 more",
    ]
    assert frames[-1][-3:] == [
        "Epoch 1/1  ━━━━━━━━━━━━━━━━━━━━━━━━ 16/16 0:05 elapsed 4.0 it/s",
        "metric_0/accuracy=0.125 metric_1/accuracy=0.125 metric_2/accuracy=0.125 +6 more",
        "Validation ━━━━━━━━━━━━━━━━━━━━━━━━   8/8 0:01 elapsed 8.0 it/s",
    ]


def test_each_finished_epoch_leaves_a_line() -> None:
    """What stays are the epochs with their metrics and times, and what all took; no bar, and nothing left to do."""
    frames, end = shown(80, ["loss"])
    assert end == [
        "Epoch 0/2: 16/16 batches in 5.0 s, loss=0.125 val_loss=0.500",
        "Epoch 1/2: 16/16 batches in 5.0 s, loss=0.125 val_loss=0.500",
        "Epoch 2/2: 16/16 batches in 5.0 s, loss=0.125 val_loss=0.500",
        "Training took 0:15.",
    ]
    assert frames[-1][:2] == end[:2]


def test_an_epoch_has_its_bar_before_its_first_batch_is_done() -> None:
    """A batch that takes long leaves no empty screen, and no bar of what is over: an epoch's stands at once."""
    seen: list[list[str]] = []

    class Looks(Net):
        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            if batch_idx == 0:
                seen.append(Screen(self.trainer.progress_bar_callback._console_kwargs["file"].getvalue()).lines)

    shown(80, ["loss"], epochs=2, net=Looks)
    assert [line.split() for line in seen[0]] == [["Epoch", "0/1", "0/16", "0:00", "elapsed"]]
    assert seen[1][0].startswith("Epoch 0/1: 16/16")
    assert seen[1][1].endswith("0/16 0:00 elapsed, 0:04 left, run 0:05 left 4.0 it/s")


def test_leave_false_keeps_the_last_bar_alone() -> None:
    """`leave=False` replaces each epoch's bar by the next one's; the last one says how long it took."""
    _, end = shown(80, ["loss"], leave=False)
    assert end[0].startswith("Epoch 2/2 ━━━")
    assert end[0].endswith(" 16/16 in 5.0 s 4.0 it/s loss=0.125 val_loss=0.500")
    assert end[1:] == ["Training took 0:15."]


def test_leave_true_keeps_each_bar() -> None:
    """`leave=True` keeps the bar of each epoch."""
    _, end = shown(120, ["loss"], leave=True)
    assert [line[:9] for line in end] == ["Epoch 0/2", "Epoch 1/2", "Epoch 2/2", "Training "]
    assert all("━ 16/16 in 5.0 s 4.0 it/s loss=0.125 val_loss=0.500" in line for line in end[:3])


@pytest.mark.parametrize("width", [30, 80])
def test_a_name_that_is_wider_than_the_terminal_keeps_its_number(width: int) -> None:
    """Such a name loses its middle, its number nothing; letters of two columns count as two."""
    for name in ("a" * 90 + "z", "損" * 50 + "z"):
        frames, end = shown(width, [name], epochs=1)
        assert all(cell_len(line) <= width for lines in [*frames, end] for line in lines)
        assert any(re.search(r"(a+|損+)…(a+|損+)z=0\.125", line) for line in end)


def test_a_delimiter_of_lines_stacks_the_metrics() -> None:
    """A theme whose delimiter is a line break has each metric on a line, however many; another one ends each word."""
    frames, _ = shown(80, NINE, epochs=1, theme=RichProgressBarTheme(metrics_text_delimiter="\n"))
    assert frames[15][1:] == [f"{name}=0.125" for name in NINE]
    frames, _ = shown(80, ["a" * 30, "b" * 30], epochs=1, theme=RichProgressBarTheme(metrics_text_delimiter=", "))
    assert frames[15][1:] == [f"{'a' * 30}=0.125, {'b' * 30}=0.125"]


def test_columns_of_the_user_s_own() -> None:
    """Columns that `configure_columns` returns are drawn; one that is too wide goes on below, at a blank."""

    class Own(RichProgressBar):
        def configure_columns(self, trainer: Trainer) -> list[Any]:
            words = TextColumn("{task.fields[metrics]}")
            return ["{task.description}", BarColumn(bar_width=12), words]

    frames, _ = shown(40, ["first_metric", "second_metric", "third_metric"], epochs=1, bar=Own)
    assert frames[15] == ["Epoch 0/0 ━━━━━━━━━━━━", "first_metric=0.125 second_metric=0.125", "third_metric=0.125"]


def test_an_epoch_s_value_stands_for_its_last_step_s() -> None:
    """The line of an epoch leaves out the last step's value where the epoch's own is there."""

    class Both(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("loss", float(batch_idx), prog_bar=True, on_step=True, on_epoch=True)
            self.log("only_step", 1.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

    _, end = shown(100, [], epochs=1, net=Both)
    assert end[0] == "Epoch 0/0: 16/16 batches in 5.0 s, only_step=1.000 val_loss=0.500 loss_epoch=7.500"


def test_an_error_leaves_the_bar_where_it_was() -> None:
    """The bar of the epoch in which a run broke stays, so that one sees how far it came."""

    class Breaks(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if batch_idx == 7:
                raise MeantError
            return super().training_step(batch, batch_idx)

    _, end = shown(80, ["loss"], net=Breaks)
    assert end[0].startswith("Epoch 0/2 ━━━")
    assert " 7/16 0:02 elapsed, 0:02 left" in end[0]


def test_a_stop_is_an_end_too() -> None:
    """A run that a later callback stops says what it took, as all others do."""
    _, end = shown(80, ["loss"], epochs=9, stop=EarlyStopping("val_loss", patience=1))
    assert [line[:10] for line in end] == ["Epoch 0/8:", "Epoch 1/8:", "Training t"]


def test_a_fit_that_has_nothing_to_train_says_nothing() -> None:
    """A trainer that is finished, or that is to train no epoch, writes no line."""
    frames, end = shown(80, ["loss"], epochs=0)
    assert (frames, end) == ([], [])
