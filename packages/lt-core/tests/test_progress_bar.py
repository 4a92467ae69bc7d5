"""What the progress bar shows, where, and what it costs."""

import io
import math
import sys
import types
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from lt_core import Trainer
from lt_core.callbacks import ProgressBar, RichProgressBar, Timer
from lt_core.callbacks.progress.lines import PlainLines, line
from lt_core.callbacks.progress.notebook import markup
from lt_core.callbacks.progress.screen import Screen, detect
from lt_core.callbacks.progress.view import View, metrics_text
from lt_core.demos import BoringModel
from lt_interface.errors import ConfigError


class _Tty(io.StringIO):
    def isatty(self):
        return True


class _Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _trainer(**changes):
    values = {
        "is_global_zero": True,
        "loggers": [],
        "callbacks": [],
        "progress_bar_metrics": {"loss": 0.5},
        "num_training_batches": 100,
        "num_val_batches": [10],
        "num_sanity_val_batches": [2],
        "num_test_batches": [20, 20],
        "num_predict_batches": [30],
        "sanity_checking": False,
        "state": SimpleNamespace(fn="fit"),
        "current_epoch": 0,
        "max_epochs": 3,
        "global_step": 0,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "batches_done": 0,
    }
    return _Trainer(**{**values, **changes})


class _Trainer(SimpleNamespace):
    __hash__ = object.__hash__

    def shown_metrics(self):
        return self.progress_bar_metrics


def _bar(trainer, clock, **arguments):
    bar = RichProgressBar(**arguments)
    bar._clock = clock
    bar.setup(trainer, None, "fit")
    return bar


def _train(bar, trainer, clock, batches=100, seconds=0.1):
    bar.on_train_epoch_start(trainer, None)
    for i in range(batches):
        clock.now += seconds
        bar.on_train_batch_end(trainer, None, None, None, i)
    bar.on_train_epoch_end(trainer, None)
    trainer.current_epoch += 1


def test_a_file_gets_a_line_each_ten_seconds_and_one_an_epoch(capsys):
    """Without a terminal, lines are few and hold counts, speed, what is left and the metrics."""
    clock, trainer = _Clock(), _trainer()
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    for _ in range(3):
        _train(bar, trainer, clock, seconds=0.15)
    bar.on_train_end(trainer, None)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert lines[0] == "Epoch 0/2: 67/100 batches, 6.7 it/s, 0:10 elapsed, 0:05 left, run 0:35 left, loss=0.500"
    assert lines[1] == "Epoch 0/2: 100/100 batches in 0:15, run 0:30 left, loss=0.500"
    assert lines[-2:] == ["Epoch 2/2: 100/100 batches in 0:15, loss=0.500", "Training took 0:45."]


def test_a_terminal_gets_bars_of_epoch_and_run():
    """On a terminal the bar holds title, counts, both estimates, speed and metrics, and validation has its own."""
    clock, trainer, screen = _Clock(), _trainer(), _Tty()
    bar = _bar(trainer, clock, console_kwargs={"file": screen, "width": 160, "force_terminal": True})
    bar.on_train_start(trainer, None)
    _train(bar, trainer, clock)
    bar.on_train_epoch_start(trainer, None)
    clock.now += 5
    bar.on_train_batch_end(trainer, None, None, None, 49)
    bar.on_validation_start(trainer, None)
    clock.now += 1
    bar.on_validation_batch_end(trainer, None, None, None, 0)
    bar.on_validation_end(trainer, None)
    bar.print("a line from the user [bold]")
    bar.on_train_end(trainer, None)
    text = screen.getvalue()
    assert "Epoch 0/2" in text
    assert "50/100" in text
    assert "0:05 left, run 0:15 left" in text
    assert "0:05 left, run 0:24 left" in text  # the nine seconds of validation that are left count too
    assert "10.0 it/s" in text
    assert "loss=0.500" in text
    assert "Validation" in text
    assert "1/10" in text
    assert "a line from the user [bold]" in text


def test_a_terminal_is_drawn_ten_times_a_second_at_most():
    """Between two drawings lies a tenth of a second, whatever the number of batches."""
    clock, trainer = _Clock(), _trainer(num_training_batches=10_000)
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    drawn = []
    bar._display = SimpleNamespace(interval=0.1, show=drawn.append, finish=drawn.append, close=lambda: None)
    bar._due = 0.1
    _train(bar, trainer, clock, batches=10_000, seconds=0.0001)
    assert 8 <= len(drawn) <= 11


def test_a_batch_costs_one_call_and_little_time_when_nothing_is_due():
    """The hook makes no Python call of its own when no drawing is due."""
    trainer, bar = _trainer(), RichProgressBar()
    bar.setup(trainer, None, "fit")
    bar.on_train_start(trainer, None)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(frame.f_code.co_name) if event == "call" else None)
    try:
        bar.on_train_batch_end(trainer, None, None, None, 0)
    finally:
        sys.setprofile(None)
    assert calls == ["on_train_batch_end"]


def test_rich_is_imported_only_when_it_draws(monkeypatch):
    """A run whose output is a file never imports rich."""
    loaded = [name for name in sys.modules if name.split(".")[0] == "rich" or name.endswith("rich_display")]
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)  # importing it now would raise
    clock, trainer = _Clock(), _trainer()
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    _train(bar, trainer, clock)
    bar.on_train_end(trainer, None)


def test_a_timer_caps_the_run():
    """Where a time budget ends the run first, the run's estimate is what it leaves."""
    clock, trainer = _Clock(), _trainer(callbacks=[Timer({"seconds": 7})])
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    shown = []
    bar._display = SimpleNamespace(interval=1.0, show=shown.append, finish=shown.append, close=lambda: None)
    _train(bar, trainer, clock)
    assert shown[-1].run_left == 7


def test_test_predict_and_validate_have_their_own_lines(capsys):
    """Outside of fit each loop ends with one line; the sanity check says nothing."""
    clock = _Clock()
    for fn, stage, total in (("test", "test", 40), ("predict", "predict", 30), ("validate", "validation", 10)):
        trainer = _trainer(state=SimpleNamespace(fn=fn))
        bar = _bar(trainer, clock)
        getattr(bar, f"on_{stage}_start")(trainer, None)
        for i in range(total):
            clock.now += 0.1
            getattr(bar, f"on_{stage}_batch_end")(trainer, None, None, None, i)
        getattr(bar, f"on_{stage}_end")(trainer, None)
    trainer = _trainer(sanity_checking=True)
    bar = _bar(trainer, clock)
    bar.on_validation_start(trainer, None)
    bar.on_validation_batch_end(trainer, None, None, None, 0)
    bar.on_validation_end(trainer, None)
    assert capsys.readouterr().out.splitlines() == [
        "Test: 40/40 batches in 4.0 s, loss=0.500",
        "Predict: 30/30 batches in 3.0 s, loss=0.500",
        "Validation: 10/10 batches in 1.0 s, loss=0.500",
    ]


@pytest.mark.parametrize("change", [{"refresh_rate": 0}, {}])
def test_off_means_silent(change, capsys):
    """A rate of 0, and every rank but the first, show nothing."""
    clock, trainer = _Clock(), _trainer(is_global_zero=not change)
    if not change:
        trainer.is_global_zero = False
    bar = _bar(trainer, clock, **change)
    assert bar.is_disabled
    bar.on_train_start(trainer, None)
    _train(bar, trainer, clock, seconds=1.0)
    assert capsys.readouterr().out == ""
    with pytest.raises(ConfigError, match="must be 0"):
        RichProgressBar(refresh_rate=-1)


def test_unknown_lengths_are_shown_as_far_as_they_are_known():
    """Without a length there is a count, and no estimate."""
    clock, trainer = _Clock(), _trainer(num_training_batches=math.inf, max_epochs=-1)
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    shown = []
    bar._display = SimpleNamespace(interval=1.0, show=shown.append, finish=shown.append, close=lambda: None)
    _train(bar, trainer, clock, batches=7)
    assert line(shown[-1], finished=True) == "Epoch 0: 7 batches in 0.7 s, loss=0.500"


def test_a_resumed_epoch_begins_where_it_was():
    """Speed is measured over the batches of this process alone."""
    clock = _Clock()
    trainer = _trainer(batches_done=90)
    bar = _bar(trainer, clock)
    bar.on_train_start(trainer, None)
    shown = []
    bar._display = SimpleNamespace(interval=1.0, show=shown.append, finish=shown.append, close=lambda: None)
    bar._due = 0
    clock.now += 1
    bar.on_train_batch_end(trainer, None, None, None, 90)
    assert shown[0].pace == pytest.approx(1.0)
    assert shown[0].left == pytest.approx(9.0)


def test_metrics_show_the_version_and_what_was_logged():
    """The run's version comes first; a logged metric of its name takes its place, with a warning."""
    bar = ProgressBar()
    trainer = _trainer(loggers=[SimpleNamespace(version=3)])
    assert bar.get_metrics(trainer, None) == {"v_num": 3, "loss": 0.5}
    trainer.loggers[0].version = "run-abcd"
    assert bar.get_metrics(trainer, None)["v_num"] == "abcd"
    trainer.progress_bar_metrics = {"v_num": 7.0}
    with pytest.warns(UserWarning, match="v_num"):
        assert bar.get_metrics(trainer, None) == {"v_num": 7.0}
    assert bar.get_metrics(trainer, None) == {"v_num": 7.0}


def test_totals_are_those_of_the_running_stage():
    """The base class counts batches over all loaders, and needs a trainer for it."""
    bar, trainer = ProgressBar(), _trainer()
    with pytest.raises(RuntimeError, match="no trainer before its setup"):
        _ = bar.total_train_batches
    bar.setup(trainer, None, "fit")
    assert (bar.total_train_batches, bar.total_val_batches, bar.total_test_batches) == (100, 10, 40)
    assert bar.total_predict_batches == 30
    trainer.sanity_checking = True
    assert bar.total_val_batches == 2


def test_small_numbers_are_not_shown_as_zero():
    """A rate of 1e-5 keeps its digits, whole numbers and words stay as they are."""
    assert metrics_text({"lr": 1e-5, "n": 3, "zero": 0.0, "word": "x"}) == "lr=1.00e-05 n=3 zero=0.000 word=x"


def test_a_line_for_validation_inside_an_epoch():
    """A long validation is shown within its epoch."""
    view = View("Epoch 0/9", 5, 10, inner=View("Validation", 3, 30, elapsed=3.0, left=27.0), metrics={"loss": 0.5})
    written = []
    PlainLines(write=written.append).show(view)
    assert written == ["Epoch 0/9, Validation: 3/30 batches, 0:03 elapsed, 0:27 left, loss=0.500"]


@pytest.fixture
def cell(monkeypatch):
    """Make a notebook of this process, and return the forms of its blocks, as they are made and replaced."""
    blocks = []

    class Handle:
        def __init__(self, forms):
            blocks.append([forms])
            self.number = len(blocks) - 1

        def update(self, forms, raw):
            assert raw
            blocks[self.number].append(forms)

    display_module = types.ModuleType("IPython.display")
    display_module.display = lambda forms, raw, display_id: Handle(forms)
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display_module)
    return blocks


def _in_notebook(**arguments):
    clock, trainer = _Clock(), _trainer()
    bar = _bar(trainer, clock, **arguments)
    bar.on_train_start(trainer, None)
    for _ in range(3):
        _train(bar, trainer, clock)
    bar.on_train_end(trainer, None)


def test_a_notebook_gets_one_block_with_a_row_for_each_epoch(cell, capsys):
    """In a notebook one block is replaced: a bar, below a table of the epochs that are over; text where HTML is not."""
    assert detect() is Screen.NOTEBOOK
    _in_notebook()
    (block,) = cell
    assert len(block) > 10
    assert '<progress value="5" max="100"></progress> 5/100' in block[1]["text/html"]
    assert "loss=0.500</pre>" in block[1]["text/html"]
    assert block[1]["text/plain"].startswith("Epoch 0/2: 5/100 batches, 10.0 it/s")
    last = block[-1]
    assert "<progress" not in last["text/html"]
    assert last["text/html"].count("<tr>") == 4
    assert "<th>time</th><th>loss</th>" in last["text/html"]
    assert "<tr><td>Epoch 2/2</td><td>100/100</td><td>0:10</td><td>0.500</td></tr>" in last["text/html"]
    assert last["text/plain"].splitlines()[-1] == "Epoch 2/2: 100/100 batches in 0:10, loss=0.500"
    assert capsys.readouterr().out == "Training took 0:30.\n"


@pytest.mark.parametrize(("leave", "blocks"), [(True, 3), (False, 1)])
def test_a_notebook_keeps_each_epoch_s_bar_or_the_last(cell, leave, blocks):
    """With leave=True each epoch has a block of its own, with leave=False all share one; neither has a table."""
    _in_notebook(leave=leave)
    assert len(cell) == blocks
    assert all('max="100"' in block[-1]["text/html"] and "<table" not in block[-1]["text/html"] for block in cell)


def test_markup_is_escaped():
    """A metric's name cannot break the page."""
    assert "&lt;b&gt;" in markup(View("<b>", 1, None))


@pytest.mark.parametrize(
    ("stream", "term", "expected"),
    [
        (_Tty(), "xterm", Screen.TERMINAL),
        (_Tty(), "dumb", Screen.LINES),
        (io.StringIO(), "xterm", Screen.LINES),
    ],
)
def test_the_screen_is_recognised(monkeypatch, stream, term, expected):
    """A terminal that can be drawn on is distinguished from a file."""
    monkeypatch.setenv("TERM", term)
    assert detect(stream) is expected


def test_an_error_gives_the_screen_back():
    """After an exception the bar is closed, so that the error can be read."""
    clock, trainer, screen = _Clock(), _trainer(), _Tty()
    bar = _bar(trainer, clock, console_kwargs={"file": screen, "force_terminal": True})
    bar.on_train_start(trainer, None)
    clock.now += 1
    bar.on_train_batch_end(trainer, None, None, None, 0)
    bar.on_exception(trainer, None, ValueError("x"))
    assert bar._display is None
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")


def test_a_bar_of_your_own_asks_for_the_running_loader():
    """A bar learns where the next loader of an evaluation begins, and how many batches it has, as in Lightning."""
    seen = []

    class Bar(ProgressBar):
        def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
            if self.has_dataloader_changed(dataloader_idx):
                seen.append((dataloader_idx, self.total_val_batches_current_dataloader))

        def on_validation_end(self, trainer, pl_module):
            self.reset_dataloader_idx_tracker()

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_epochs=1, callbacks=[Bar()])
    model = BoringModel()
    model.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
    for _ in range(2):
        trainer.validate(model, [DataLoader(torch.ones(size, 32)) for size in (3, 2)], verbose=False)
    assert seen == [(0, 3), (1, 2)] * 2
