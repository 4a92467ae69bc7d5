"""How a run begins and ends, in one line each: why it ended, where it stands, what is best, and what resumes it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, SILENT
from torch import nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint, Timer

BATCHES = [torch.ones(1, 1)] * 4


class Net(LightningModule):
    """Module that calls what the test wants in one step."""

    def __init__(self, act: Callable[[Any], Any] | None = None, at: int = 2) -> None:
        super().__init__()
        self.layer, self.act, self.at = nn.Linear(1, 1), act, at

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.act is not None and self.global_step == self.at:
            self.act(self)
        return self.layer(batch).square().sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0)

    def val_dataloader(self) -> Any:
        return BATCHES[:1]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def interrupt(net: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def terminate(net: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ask(net: Any) -> None:
    net.trainer.should_stop = True


def fail(net: Any) -> None:
    raise OSError("the disk is gone")


def ended(caplog: pytest.LogCaptureFixture, net: Net, data: Any = BATCHES, **flags: Any) -> tuple[Trainer, list[str]]:
    """Fit, whatever comes of it, and return the trainer and the lines about the end."""
    trainer = Trainer(**{**QUIET, "num_sanity_val_steps": 0, "max_epochs": 2, **flags})
    caplog.clear()
    with caplog.at_level("INFO", logger="lt_core"), contextlib.suppress(KeyboardInterrupt, SystemExit, OSError):
        trainer.fit(net, data, BATCHES[:1])
    return trainer, [line for line in caplog.messages if line.startswith("`Trainer.")]


OVER = "At the end of epoch 1, step 8."


@pytest.mark.parametrize(
    ("act", "flags", "reason", "line"),
    [
        (None, {}, "max_epochs", f"`max_epochs=2` reached. {OVER}"),
        (None, {"max_steps": 5}, "max_steps", "`max_steps=5` reached. In epoch 1 after 1 of 4 batches, step 5."),
        (None, {"max_steps": 4}, "max_steps", "`max_steps=4` reached. At the end of epoch 0, step 4."),
        (None, {"limit_train_batches": 0}, "no_batches", "No training batches. Before the first batch was trained."),
        (None, {"max_epochs": 0}, "max_epochs", "`max_epochs=0` reached. Before the first batch was trained."),
        (None, {"fast_dev_run": True}, "max_steps", "`max_steps=1` reached. At the end of epoch 0, step 1."),
        (
            ask,
            {},
            r"should_stop: in ask \(test_endings.py:\d+\)",
            r"`trainer.should_stop` was set in ask \(test_endings.py:\d+\). In epoch 0 after 3 of 4 batches, step 3.",
        ),
        (
            None,
            {"callbacks": [EarlyStopping("val_loss", patience=2)], "max_epochs": 9},
            "EarlyStopping: val_loss did not improve in the last 2 looks; best was 1.00000",
            "EarlyStopping: val_loss did not improve in the last 2 looks; best was 1.00000. "
            "At the end of epoch 2, step 12.",
        ),
        (
            interrupt,
            {},
            "signal: SIGINT",
            r"SIGINT \(Ctrl-C\). In epoch 0 after 3 of 4 batches, step 3. There is no checkpoint to resume from; "
            r"callbacks=\[ModelCheckpoint\(save_on_exception=True\)\] saves one at such a stop.",
        ),
        (
            terminate,
            {"callbacks": [], "max_steps": 7},
            "signal: SIGTERM",
            "SIGTERM. In epoch 0 after 3 of 4 batches, step 3. There is no checkpoint to resume from; .*",
        ),
    ],
)
def test_the_last_line_says_why_and_where(
    caplog: pytest.LogCaptureFixture, act: Any, flags: dict[str, Any], reason: str, line: str
) -> None:
    """Each fit ends with one line: the limit, who asked or the signal, then epoch, batch and step."""
    trainer, lines = ended(caplog, Net(act), **flags)
    assert re.fullmatch(reason, str(trainer.stop_reason))
    assert len(lines) == 1
    assert re.fullmatch(f"`Trainer.fit` stopped: {line}", lines[0])


def test_the_reason_stands_for_the_newest_fit_alone() -> None:
    """While a fit runs there is no reason, and a test after it changes none."""
    seen: list[Any] = []
    net = Net(lambda net: seen.append(net.trainer.stop_reason))
    net.test_step = lambda batch, batch_idx: None  # type: ignore[method-assign,assignment]
    trainer = Trainer(**QUIET, max_epochs=1)
    assert trainer.stop_reason is None
    trainer.fit(net, BATCHES)
    trainer.test(net, BATCHES)
    assert (seen, trainer.stop_reason) == ([None], "max_epochs")


def test_time_that_is_used_up_says_how_to_go_on(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A fit that max_time ends may be resumed, with more of it; its file is that of the last step."""
    timer = Timer({"hours": 1})
    net = Net(lambda net: setattr(timer, "_duration", 0.0))
    saves = ModelCheckpoint(tmp_path)
    trainer, [line] = ended(caplog, net, callbacks=[timer, saves], enable_checkpointing=True)
    assert trainer.stop_reason == "Timer: max_time=0:00:00 is used up"
    call = "trainer.fit(model, train_dataloaders=train_dataloaders, val_dataloaders=val_dataloaders"
    end = f'To resume at step 3 with more time: {call}, ckpt_path="{saves.best_model_path}")'
    assert line.endswith(f"is used up. In epoch 0 after 3 of 4 batches, step 3. {end}")


def test_the_best_checkpoint_is_named(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """With a monitored value the line names the best file and its value; without one, the last file."""
    best = ModelCheckpoint(tmp_path / "best", monitor="val_loss")
    _, [line] = ended(caplog, Net(), callbacks=[best], enable_checkpointing=True)
    assert line.endswith(f"{OVER} Best checkpoint (val_loss=1): {best.best_model_path}")
    assert os.path.exists(best.best_model_path)
    last = ModelCheckpoint(tmp_path / "last")
    _, [line] = ended(caplog, Net(), callbacks=[last], enable_checkpointing=True)
    assert line.endswith(f"{OVER} Last checkpoint: {last.best_model_path}")


@pytest.mark.filterwarnings("ignore:.*(callbacks that are not here|not at a boundary).*:UserWarning")
@pytest.mark.parametrize("act", [interrupt, terminate, fail])
@pytest.mark.parametrize(
    "saving",
    [
        lambda folder: ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=1),
        lambda folder: ModelCheckpoint(folder, save_on_exception=True),
        lambda folder: ModelCheckpoint(folder, monitor="val_loss", save_last=True),
        OnExceptionCheckpoint,
    ],
)
def test_the_call_in_the_line_resumes(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, act: Any, saving: Callable[[Path], Any]
) -> None:
    """After a signal or an error the line has the call that resumes: it works, from the step it says."""
    _, [line] = ended(
        caplog, Net(act, at=6), callbacks=[saving(tmp_path)], enable_checkpointing=True, default_root_dir=tmp_path
    )
    found = re.search(r"To resume at step (\d+): (trainer\.fit\(.*?\.ckpt\"\))", line)
    assert found, line
    trainer = Trainer(**QUIET, max_epochs=2)
    began: list[int] = []
    trainer.on("train_start")(lambda trainer: began.append(trainer.global_step))
    exec(found[2], {"trainer": trainer, "model": Net(), "train_dataloaders": BATCHES, "val_dataloaders": BATCHES[:1]})
    assert (began, trainer.global_step) == ([int(found[1])], 8)


def test_an_error_without_a_file_has_its_traceback_alone(caplog: pytest.LogCaptureFixture) -> None:
    """An error in a fit that has saved nothing adds no line; the reason names it."""
    trainer, lines = ended(caplog, Net(fail))
    assert (trainer.stop_reason, lines) == ("error: OSError", [])


def test_a_signal_in_a_test_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Validation, test and prediction that a signal ends say so too."""
    net = Net()
    net.test_step = lambda batch, batch_idx: interrupt(net)  # type: ignore[method-assign,assignment]
    trainer = Trainer(**QUIET, max_epochs=1)
    with caplog.at_level("INFO", logger="lt_core"), pytest.raises(KeyboardInterrupt):
        trainer.test(net, BATCHES)
    assert caplog.messages == ["`Trainer.test` stopped: SIGINT (Ctrl-C)."]


class TestWhoStops:
    def test_a_method_of_the_module(self) -> None:
        """A method is named with its class, its file and its line."""

        class Stops(Net):
            def on_train_batch_end(self, *arguments: Any) -> None:
                self.trainer.should_stop = True

        trainer = Trainer(**QUIET, max_epochs=3)
        trainer.fit(Stops(), BATCHES)
        assert re.fullmatch(
            r"should_stop: in Stops.on_train_batch_end \(test_endings.py:\d+\)", str(trainer.stop_reason)
        )

    def test_a_request_with_its_reason(self) -> None:
        """What asks by request_stop is named by its class, with the reason it gives; the first one counts."""

        class Watch:
            """Asker."""

        one, two = Watch(), Watch()
        trainer = Trainer(**QUIET, max_epochs=3)
        trainer.fit(
            Net(lambda net: (net.trainer.request_stop(one, "it is late"), net.trainer.request_stop(two))), BATCHES
        )
        assert trainer.stop_reason == "Watch: it is late"

    def test_a_stop_that_was_taken_back_is_none(self) -> None:
        """A request that is taken back, or that the limits came before, is not the reason."""
        trainer = Trainer(**QUIET, max_epochs=2, min_epochs=2)
        trainer.fit(Net(ask), BATCHES)
        assert trainer.stop_reason == "max_epochs"
        trainer = Trainer(**QUIET, max_epochs=1)
        trainer.fit(Net(lambda net: (ask(net), setattr(net.trainer, "should_stop", False))), BATCHES)
        assert trainer.stop_reason == "max_epochs"


class TestTheFirstLine:
    def lines(self, caplog: pytest.LogCaptureFixture, trainer: Trainer, **call: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO", logger="lt_core"):
            trainer.fit(Net(), BATCHES, **call)
        return [line for line in caplog.messages if line.startswith("Device: ")]

    def test_a_new_run_and_one_that_goes_on(
        self, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The line has the folder, from where the program runs, and whether the run is new, goes on or is resumed."""
        monkeypatch.chdir(tmp_path)
        flags: dict[str, Any] = {"accelerator": "cpu", "enable_model_summary": False, "enable_checkpointing": False}
        before = "Device: cpu. Precision: 32-true. Strategy: single_device. Folder: lightning_logs/version_0."
        first = Trainer(**flags, max_epochs=1)
        assert self.lines(caplog, first) == [f"{before} A new run."]
        first.max_epochs = 2
        assert self.lines(caplog, first) == [f"{before} Going on at step 4."]
        first.save_checkpoint("mine.ckpt")
        again = self.lines(caplog, Trainer(**flags, max_epochs=3), ckpt_path="mine.ckpt")
        assert again == [f"{before.replace('_0', '_1')} Resuming from mine.ckpt at step 8."]

    def test_it_goes_with_the_bar(self, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
        """Without a progress bar, or with one that is off, there is no line."""
        from lt_core.callbacks import RichProgressBar

        assert self.lines(caplog, Trainer(**QUIET, max_epochs=1)) == []
        off = {**QUIET, "enable_progress_bar": True, "callbacks": [RichProgressBar(refresh_rate=0)]}
        assert self.lines(caplog, Trainer(**off, max_epochs=1)) == []
        on = {**QUIET, "enable_progress_bar": True, "default_root_dir": tmp_path}
        assert len(self.lines(caplog, Trainer(**on, max_epochs=1))) == 1


PROGRAM = """
import os, signal, sys, torch
from lt_core import LightningModule, Trainer

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return self.layer(batch).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

Trainer(max_epochs=3, accelerator="cpu", enable_model_summary=False, default_root_dir=sys.argv[1]).fit(
    Net(), [torch.ones(1, 1)] * 4)
"""


@pytest.mark.parametrize("debug", ["", pytest.param("0", marks=pytest.mark.slow), "1"])
def test_ctrl_c_shows_the_line_and_no_frame_of_ours(tmp_path: Path, debug: str) -> None:
    """A program that Ctrl-C ends writes the line and one word, and dies of SIGINT; LT_DEBUG=1 shows the traceback."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "LT_DEBUG": debug},
    )
    lines = done.stderr.strip().splitlines()
    assert "`Trainer.fit` stopped: SIGINT (Ctrl-C). In epoch 1 after 2 of 4 batches, step 6." in done.stderr
    assert ("Traceback" in done.stderr, "lt_core" in done.stderr.replace(str(tmp_path), "")) == (debug == "1",) * 2
    assert done.returncode == -signal.SIGINT
    if debug != "1":
        assert lines[-1] == "KeyboardInterrupt (LT_DEBUG=1 shows where)"


def test_a_hook_of_the_programs_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a program has put a hook in the place of Python's traceback, it stays."""
    seen: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    own = sys.excepthook
    with pytest.raises(KeyboardInterrupt):
        Trainer(**SILENT, logger=False, enable_checkpointing=False, max_epochs=1).fit(Net(interrupt), BATCHES)
    assert sys.excepthook is own


def test_torchs_hook_is_asked_for_other_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hook that torch installs for ranks shows every error but Ctrl-C's."""
    seen: list[Any] = []

    def own(*error: Any) -> None:
        seen.append(error[0])

    own.__module__ = "torch.distributed"
    monkeypatch.setattr(sys, "excepthook", own)
    with pytest.raises(KeyboardInterrupt) as stopped:
        Trainer(**QUIET, max_epochs=1).fit(Net(interrupt), BATCHES)
    sys.excepthook(ValueError, ValueError("x"), None)
    sys.excepthook(KeyboardInterrupt, stopped.value, None)
    assert seen == [ValueError]
    assert capsys.readouterr().err.endswith("KeyboardInterrupt (LT_DEBUG=1 shows where)\n")
