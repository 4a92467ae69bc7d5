"""Show progress with tqdm: what stays on the screen, and bars that users exchange."""

from __future__ import annotations

import io
import pickle
import re
import sys
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

tqdm = pytest.importorskip("tqdm").tqdm

from lt_core import LightningModule, Trainer  # noqa: E402
from lt_core.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar  # noqa: E402
from lt_core.callbacks.progress import tqdm_progress  # noqa: E402
from lt_interface import MissingPackageError  # noqa: E402
from lt_interface.errors import ConfigError  # noqa: E402

X: Any = DataLoader(torch.randn(12, 1), batch_size=2)  # type: ignore[arg-type]


class Terminal(io.StringIO):
    """Stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Net(LightningModule):
    """Module that logs to the bar, and prints."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.log("loss", 0.25, prog_bar=True)
        if batch_idx == 3:
            self.print("a line between")
        loss: Tensor = self.layer(batch).square().mean()
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", 0.5, prog_bar=True)

    test_step = validation_step

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def shown(bar: Any, monkeypatch: pytest.MonkeyPatch, stream: Any = None, **flags: Any) -> str:
    """Return all that fit, test and predict write to the screen, seconds replaced and metrics in one order."""
    stream = Terminal() if stream is None else stream
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(tqdm_progress, "get_terminal_size", lambda: type("Size", (), {"columns": 80}))
    trainer = Trainer(**{**QUIET, "max_epochs": 2, **flags, "enable_progress_bar": True, "callbacks": [bar]})
    trainer.fit(Net(), X, X)
    trainer.test(Net(), X, verbose=False)
    trainer.predict(Net(), X, return_predictions=False)
    text = re.sub(r"(in|took) \d[\d.]* m?s", r"\1 T", stream.getvalue())
    # What is first seen stands first, which depends on when the bar was drawn.
    return re.sub(r"val_loss=0.500(,?) loss=0.250", r"loss=0.250\1 val_loss=0.500", text)


def left(text: str) -> list[str]:
    """Return the lines that are left on a screen: behind the last carriage return, without what moves the cursor."""
    lines = (line.replace("\x1b[A", "").rstrip().rsplit("\r", 1)[-1] for line in text.split("\n"))
    return [line for line in lines if line.strip()]


LINES = [
    "Epoch 0/1: 6/6 batches in T, loss=0.250 val_loss=0.500",
    "Epoch 1/1: 6/6 batches in T, loss=0.250 val_loss=0.500",
    "Training took T.",
    "Test: 6/6 batches in T, val_loss=0.500",
    "Predict: 6/6 batches in T",
]


def test_a_terminal_keeps_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars vanish; of each epoch and loop a line stays, with the words of the default bar, and what was printed too."""
    text = shown(TQDMProgressBar(), monkeypatch)
    kept = left(text)
    assert [line for line in kept if line in LINES] == LINES, kept
    assert kept.count("a line between") == 2
    assert "Sanity check" in text
    assert "Validation:" in text
    assert re.search(r"Epoch 0/1: +0%\|", text)


def test_bars_stay_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """With leave=True each epoch's bar stays, full and with its metrics, and no line is added."""
    kept = "\n".join(left(shown(TQDMProgressBar(leave=True), monkeypatch)))
    assert "batches in" not in kept
    for title in ("Epoch 0/1", "Epoch 1/1"):
        assert re.search(title + r": 100%\|.*\| 6/6 \[.*loss=0.250, val_loss=0.500\]", kept), title
    assert re.search(r"Test: 100%\|.*\| 6/6 \[", kept)


def test_a_file_gets_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no terminal the lines are the same, and a bar is not drawn for each batch."""
    text = shown(TQDMProgressBar(), monkeypatch, io.StringIO())
    assert [line for line in left(text) if line in LINES] == LINES
    assert not re.search(r"[2-5]/6 \[", text)
    assert "\x1b" not in text


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_no_metric_is_cut(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar's line shows the metrics for which it has room, whole, and says how many it leaves out."""

    class Many(TQDMProgressBar):
        def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {f"metric_{i}": 0.5 for i in range(9)}

        def init_train_tqdm(self) -> Any:
            bar = super().init_train_tqdm()
            bar.dynamic_ncols, bar.ncols = None, columns
            return bar

    drawn = re.findall(r"Epoch [^\r\n]*\[([^\r\n\]]*)\]", shown(Many(), monkeypatch))
    metrics = [text.split(", ")[2:] for text in drawn if "metric_" in text or "more" in text]
    assert metrics
    for words in metrics:
        whole = [word for word in words if re.fullmatch(r"metric_\d=0\.500", word)]
        assert words == whole + ([f"+{9 - len(whole)} more"] if len(whole) < 9 else [])
    assert (max(map(len, metrics)) == 9) == (columns == 200)


@pytest.mark.parametrize("off", ["rate", "disabled", "rank"])
def test_off_means_silent(off: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate of 0, a bar that is disabled and a rank that is not the first show nothing but what is printed."""
    bar = TQDMProgressBar(refresh_rate=0 if off == "rate" else 1)
    if off == "disabled":
        bar.disable()
    if off == "rank":
        monkeypatch.setattr(
            TQDMProgressBar, "setup", lambda self, t, m, s: (ProgressBar.setup(self, t, m, s), self.disable())
        )
    text = shown(bar, monkeypatch)
    assert set(left(text)) == {"a line between"}


def test_bars_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Subclasses exchange a bar, its description, the metrics or a hook, and use the bars by their names.

    Of a hook's arguments they hand on what they have.
    """

    class Lit(TQDMProgressBar):
        def init_validation_tqdm(self) -> Any:
            bar = super().init_validation_tqdm()
            bar.set_description("running validation...")
            return bar

        def get_metrics(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            items = super().get_metrics(*args, **kwargs)
            items.pop("val_loss", None)
            return {**items, "mine": 2}

    text = shown(Lit(refresh_rate=3), monkeypatch)
    assert "running validation..." in text
    assert "Epoch 1/1: 6/6 batches in T, loss=0.250 mine=2" in left(text)

    class Own(TQDMProgressBar):
        def __init__(self) -> None:
            super().__init__()
            self.counts: list[int] = []

        def init_train_tqdm(self) -> Any:
            return tqdm(
                desc="Mine", disable=self.is_disabled, leave=True, file=sys.stdout, position=2 * self.process_position
            )

        def init_validation_tqdm(self) -> Any:
            return tqdm(disable=True)

        def on_train_start(self, *_: Any) -> None:
            super().on_train_start()

        def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
            super().on_train_epoch_start(trainer)
            self.train_progress_bar.set_description(f"epoch {trainer.current_epoch}!")

        def on_train_batch_end(self, *args: Any) -> None:
            super().on_train_batch_end(*args)
            self.train_progress_bar.set_postfix(self.get_metrics(*args[:2]), refresh=True)

        def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
            self.counts.append(self.train_progress_bar.n)
            super().on_validation_end(trainer, pl_module)

    own = Own()
    text = shown(own, monkeypatch, num_sanity_val_steps=0)
    assert "epoch 1!: 100%" in text
    assert "Validation" not in text
    assert own.counts == [6, 6]


def test_the_bars_class_can_be_imported_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """``Tqdm`` comes from the same module, formats numbers as other bars do, and starts no thread."""
    from lt_core.callbacks.progress.tqdm_progress import Tqdm

    assert issubclass(Tqdm, tqdm)
    assert (Tqdm.format_num(0.123456), Tqdm.format_num(0.00001), Tqdm.format_num(7)) == ("0.123", "1.00e-05", "7")
    monkeypatch.setattr(tqdm, "monitor", None)
    shown(TQDMProgressBar(), monkeypatch)
    assert tqdm.monitor is Tqdm.monitor is None
    with pytest.raises(AttributeError, match="no attribute 'Tqdmm'"):
        _ = tqdm_progress.Tqdmm


def test_a_bar_that_is_not_there_yet_says_so() -> None:
    """A bar's name is an error before its loop, not after it; the callback travels to other processes without bars."""
    bar = TQDMProgressBar(process_position=2)
    with pytest.raises(TypeError, match="train_progress_bar: there is no such bar before its loop begins"):
        _ = bar.train_progress_bar
    bar.train_progress_bar = Any
    copied = pickle.loads(pickle.dumps(bar))
    assert (copied.process_position, copied.refresh_rate, copied._train_progress_bar) == (2, 1, None)
    bar.train_progress_bar = one = tqdm_progress.Tqdm(disable=True)
    bar._close("_train_progress_bar")
    assert bar.train_progress_bar is one


def test_a_screen_that_is_closed_ends_the_bars_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that takes nothing turns the bars off, with a warning; the run goes on."""
    stream = Terminal()
    stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "enable_progress_bar": True, "callbacks": [TQDMProgressBar()]})
    with pytest.warns(UserWarning, match="The bars are off from now on"):
        trainer.fit(Net(), X, X)
    assert trainer.global_step == 6


@pytest.mark.parametrize("step", ["training_step", "validation_step"])
def test_an_error_gives_the_screen_back(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """After an error no bar is open any more, and what is written next begins at a line's start."""

    def fails(self: Net, batch: Tensor, batch_idx: int) -> Tensor:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    bar = TQDMProgressBar()
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "enable_progress_bar": True, "callbacks": [bar]})
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(type("Fails", (Net,), {step: fails})(), X, X)
    assert not bar._opened()
    assert stream.getvalue()[-1:] in ("\r", "\n")


def test_arguments_and_a_second_bar_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative rate, tqdm that is not installed and two bars are errors where they are written."""
    with pytest.raises(ConfigError, match=r"TQDMProgressBar\(refresh_rate=-1\): must be 0 \(off\) or more"):
        TQDMProgressBar(refresh_rate=-1)
    with pytest.raises(ConfigError, match="TQDMProgressBar"):
        Trainer(callbacks=[TQDMProgressBar(), RichProgressBar()], max_epochs=1)
    tqdm_progress._tqdm.cache_clear()
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(MissingPackageError, match=r"needs the package tqdm.*pip install 'lt-core\[tqdm\]'"):
        TQDMProgressBar()
    tqdm_progress._tqdm.cache_clear()


def test_a_resumed_epoch_begins_where_it_was(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is resumed inside an epoch shows the batches that were done before, and counts on from there."""
    flags = {**QUIET, "max_epochs": 1, "limit_val_batches": 0}
    first = Trainer(**flags, max_steps=4)
    first.fit(Net(), X)
    first.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.setattr(sys, "stdout", stream := Terminal())
    trainer = Trainer(**{**flags, "enable_progress_bar": True, "callbacks": [TQDMProgressBar()]})
    trainer.fit(Net(), X, ckpt_path=tmp_path / "a.ckpt")
    assert re.search(r"Epoch 0/0: +67%\|.*\| 4/6", stream.getvalue())
    assert "Epoch 0/0: 6/6 batches in" in stream.getvalue()
