"""Read `trainer.history`: one row an epoch of the newest fit, and the series by step."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import ModelCheckpoint
from lt_core.tracking.history import History
from lt_interface.errors import LTError

DATA = DataLoader(torch.arange(4.0).view(4, 1))
nan = math.nan


class Net(LightningModule):
    """One weight that logs by step, by epoch and in validation and test."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.validations = 0

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Log the batch's number."""
        self.log("number", float(batch_idx))
        self.log("loss", self.current_epoch + batch_idx / 10, on_step=True, on_epoch=True, batch_size=1)
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log which validation this is."""
        self.validations += batch_idx == 0
        self.log("val_loss", float(self.validations), batch_size=1)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log what the history must not have."""
        self.log("test_loss", 1.0, batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(epochs: int = 3, **flags: Any) -> Trainer:
    """Return a quiet trainer that logs each step."""
    return Trainer(**QUIET | {"max_epochs": epochs, "log_every_n_steps": 1, "num_sanity_val_steps": 0} | flags)


def fit(epochs: int = 3, net: LightningModule | None = None, path: Path | None = None, **flags: Any) -> Trainer:
    """Return a trainer that has trained and validated."""
    trainer = trainer_of(epochs, **flags)
    trainer.fit(net or Net(), DATA, DATA, ckpt_path=path)
    return trainer


def same(found: list[float], wanted: list[float]) -> bool:
    """Return whether two lists are equal, nan being equal to itself."""
    return found == pytest.approx(wanted, nan_ok=True)


def test_each_name_has_one_value_an_epoch() -> None:
    """Step values, epoch values and validations have as many rows as epochs were trained: the last value of each."""
    history = fit(num_sanity_val_steps=2).history
    assert history.keys() == {"number", "loss_step", "loss_epoch", "val_loss", "epoch"}
    assert history["epoch"] == [0, 1, 2]
    assert history["number"] == [3.0] * 3
    assert same(history["loss_step"], [0.3, 1.3, 2.3])
    assert same(history["loss_epoch"], [0.15, 1.15, 2.15])
    assert history["val_loss"] == [2.0, 3.0, 4.0]  # the first was the sanity check


def test_frames_of_pandas() -> None:
    """The history and its series by step are tables as they stand."""
    pandas = pytest.importorskip("pandas")
    history = fit(check_val_every_n_epoch=2).history
    frame = pandas.DataFrame(history).set_index("epoch")
    assert frame.shape == (3, 4)
    assert list(frame.index) == [0, 1, 2]
    steps = pandas.DataFrame(history.steps)
    assert list(steps.index) == list(range(12))
    assert steps["val_loss"].dropna().to_dict() == {7: 1.0}
    assert pandas.Series(history.steps["number"]).tolist() == [0.0, 1.0, 2.0, 3.0] * 3


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        ({"check_val_every_n_epoch": 2}, [nan, 1.0, nan, 2.0, nan]),
        ({"val_check_interval": 2}, [2.0, 4.0, 6.0, 8.0, 10.0]),
        ({"val_check_interval": 6, "check_val_every_n_epoch": None}, [nan, 1.0, 2.0, nan, 3.0]),
        ({"limit_val_batches": 0}, None),
    ],
)
def test_epochs_without_a_validation_have_nan(flags: dict[str, Any], rows: list[float] | None) -> None:
    """A row without a validation has nan, one with several the last; a name that was never logged is not there."""
    history = fit(5, **flags).history
    assert ("val_loss" in history) == (rows is not None)
    assert same(history.get("val_loss", []), rows or [])


def test_steps_that_were_not_due_leave_nan() -> None:
    """Where no step of an epoch was due, its row has nan for the values by step alone."""
    history = fit(3, log_every_n_steps=5).history
    assert same(history["number"], [nan, 0.0, 1.0])
    assert history.steps["number"] == {4: 0.0, 9: 1.0}


def test_other_calls_leave_no_row() -> None:
    """What validate and test log, before or after the fit, is neither in the rows nor in the series."""
    trainer, net = trainer_of(), Net()
    trainer.validate(net, DATA, verbose=False)
    assert trainer.history == {}
    trainer.fit(net, DATA, DATA)
    before = trainer.history
    trainer.validate(net, DATA, verbose=False)
    trainer.test(net, DATA, verbose=False)
    assert trainer.history == before
    assert trainer.history.steps == before.steps
    assert "test_loss" not in before.steps


def test_epochs_without_any_value_are_rows() -> None:
    """An epoch in which nothing at all was logged is a row, in the middle and at the end."""

    class Seldom(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if self.current_epoch in (0, 2):
                self.log("odd", float(self.current_epoch))
            return self.layer(batch).mean()

    history = fit(4, Seldom(), limit_val_batches=0).history
    assert same(history["odd"], [0.0, nan, 2.0, nan])
    assert history["epoch"] == [0, 1, 2, 3]


def stop_at(step: int) -> Callback:
    """Return a callback that stops after a step."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == step

    return Stop()


def test_a_stop_inside_an_epoch_and_the_rest_are_one_row() -> None:
    """An epoch that a stop left open has a row with its values so far; the next fit goes on in the same row."""
    trainer, net = trainer_of(3, callbacks=[stop_at(6)]), Net()
    trainer.fit(net, DATA, DATA)
    assert same(trainer.history["number"], [3.0, 1.0])
    assert same(trainer.history["loss_epoch"], [0.15, 1.05])
    trainer.callbacks.clear()
    trainer.should_stop = False
    trainer.fit(net, DATA, DATA)
    assert trainer.history["number"] == [3.0] * 3
    assert same(trainer.history["loss_epoch"], [0.15, 1.15, 2.15])
    assert list(trainer.history.steps["number"]) == list(range(12))


def test_a_further_fit_of_a_trainer_goes_on() -> None:
    """Two fits of one trainer count epochs on, and so do the rows."""
    trainer, net = trainer_of(2), Net()
    trainer.fit(net, DATA, DATA)
    trainer.max_epochs = 3
    trainer.fit(net, DATA, DATA)
    assert trainer.history["epoch"] == [0, 1, 2]
    assert trainer.history["val_loss"] == [1.0, 2.0, 3.0]


@pytest.mark.filterwarnings("ignore:.*callbacks that are not here")
@pytest.mark.parametrize("saved", ["epoch=0-step=4.ckpt", "epoch=1-step=6.ckpt"])
@pytest.mark.parametrize("logger", [True, False])
def test_a_resumed_run_has_the_earlier_part(tmp_path: Path, saved: str, logger: bool) -> None:
    """Rows before the checkpoint are kept; what the broken run logged behind it, and by validate, is not."""
    saves = ModelCheckpoint(tmp_path / "saved", filename="{epoch}-{step}", every_n_train_steps=2, save_top_k=-1)
    flags = {"default_root_dir": tmp_path, "logger": logger}
    first = fit(2, callbacks=[saves], enable_checkpointing=True, **flags)
    first.validate(Net(), DATA, verbose=False)
    again = fit(4, path=tmp_path / "saved" / saved, **flags).history
    whole = fit(4, **flags).history
    assert again["number"] == whole["number"]
    assert same(again["loss_epoch"], whole["loss_epoch"])
    assert len(again["val_loss"]) == 4
    assert again.steps["number"] == whole.steps["number"]


@pytest.mark.filterwarnings("ignore:.*metrics of an earlier run")
def test_a_new_run_in_a_used_folder_begins_at_its_first_row(tmp_path: Path) -> None:
    """A trainer's history is its own fit's, though its folder holds another run's journal."""
    from lt_core.loggers import CSVLogger

    for epochs in (3, 2):
        trainer = fit(epochs, logger=CSVLogger(tmp_path, name="", version=""))
        assert trainer.history["val_loss"] == [float(i + 1) for i in range(epochs)]


@pytest.mark.parametrize("shown", [lambda e, i: e + 1.0, lambda e, i: e + i / 4, lambda e, i: nan])
def test_an_epoch_that_the_user_logs_moves_no_row(shown: Callable[[int, int], float]) -> None:
    """A value that the user logs as ``epoch``, for the loggers' axis, does not decide about rows."""

    class Own(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("epoch", shown(self.current_epoch, batch_idx))
            return super().training_step(batch, batch_idx)

    history = fit(3, Own()).history
    assert history["epoch"] == [0, 1, 2]
    assert history["number"] == [3.0] * 3
    assert history["val_loss"] == [1.0, 2.0, 3.0]


def test_what_is_logged_after_the_last_epoch_is_in_its_row() -> None:
    """Values that a callback logs at the training's end make no row of their own."""

    class AtEnd(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.log_metrics({"seconds": 5.0})

    history = fit(2, callbacks=[AtEnd()]).history
    assert same(history["seconds"], [nan, 5.0])
    assert history["epoch"] == [0, 1]


def test_hooks_read_the_rows_so_far() -> None:
    """While training, the running epoch has a row."""
    seen: list[tuple[int, float]] = []

    class Reads(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.append((len(trainer.history["val_loss"]), trainer.history["val_loss"][-1]))

    fit(3, callbacks=[Reads()])
    assert seen == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_nothing_logged_is_an_empty_history() -> None:
    """A fit that logs nothing, and a trainer before its first call, have no rows."""

    class Silent(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.layer(batch).mean()

    assert fit(2, Silent(), limit_val_batches=0).history == {}
    assert trainer_of().history == History() == {}


class Short(Net):
    """Module that logs its loss by step alone; its optimizer is stepped by hand, after so many batches, if at all."""

    def __init__(self, every: int | None = None) -> None:
        super().__init__()
        self.every, self.automatic_optimization = every, every is None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        loss = self.layer(batch).mean()
        self.log("train_loss", self.current_epoch + batch_idx / 100, prog_bar=True)
        if self.every is None:
            return loss
        self.manual_backward(loss)
        if self.every and (batch_idx + 1) % self.every == 0:
            self.optimizers().step()  # type: ignore[union-attr]
        return None


SIXTEEN = DataLoader(torch.arange(16.0).view(16, 1))


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize(
    ("net", "flags"),
    [
        (None, {}),
        (None, {"log_every_n_steps": None}),
        (None, {"accumulate_grad_batches": 4}),
        (None, {"accumulate_grad_batches": 5}),
        (1, {}),
        (4, {}),
        (5, {}),
        (0, {}),
        (40, {}),
    ],
)
def test_each_epoch_of_a_short_run_has_a_training_loss(
    net: int | None, flags: dict[str, Any], validates: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three epochs of 16 batches have a loss each: in the history, as a frame, in the CSV file and in the bar."""
    pandas = pytest.importorskip("pandas")
    shown = {"enable_progress_bar": True, "logger": "csv", "default_root_dir": tmp_path}
    trainer = Trainer(**QUIET | {"max_epochs": 3, "num_sanity_val_steps": 0} | shown | flags)
    trainer.fit(Short(net), SIXTEEN, SIXTEEN if validates else [])
    losses = [0.15, 1.15, 2.15]
    assert same(trainer.history["train_loss"], losses)
    assert ("val_loss" in trainer.history) == validates
    frame = pandas.DataFrame(trainer.history)
    assert same(frame["train_loss"].tolist(), losses)
    assert frame.equals(trainer.history.to_frame())
    rows = pandas.read_csv(Path(trainer.log_dir or "") / "metrics.csv").groupby("epoch")["train_loss"].max()
    assert same(rows.tolist(), losses)
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch ")]
    assert [f"train_loss={loss:.3f}" in line for line, loss in zip(epochs, losses, strict=True)] == [True] * 3


@pytest.mark.parametrize("every", [0, 1, 50])
def test_a_cadence_that_was_written_holds(every: int) -> None:
    """A written `log_every_n_steps` is kept to: where no step of an epoch is due, none is logged."""
    trainer = Trainer(**QUIET | {"max_epochs": 3}, log_every_n_steps=every)
    trainer.fit(Short(), SIXTEEN, [])
    assert len(trainer.history.steps.get("train_loss", {})) == (48 if every == 1 else 0)


def test_a_notebook_shows_rows_and_curves() -> None:
    """In a notebook the history is a table with a row an epoch, nothing where nothing was logged, and a picture."""
    pytest.importorskip("matplotlib")

    class Markup(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            self.log("<b>", float(batch_idx))
            return super().training_step(batch, batch_idx)

    page = fit(3, Markup(), check_val_every_n_epoch=2).history._repr_html_()
    assert "<th>epoch</th>" in page
    assert "<th>&lt;b&gt;</th>" in page
    assert page.count("<tr>") == 4
    assert page.count("<td></td>") == 2
    assert '<img alt="metrics by step" src="data:image/png;base64,iVBOR' in page


def test_a_long_history_shows_its_last_rows() -> None:
    """Of many epochs a notebook shows the last twenty, and says of how many."""
    page = fit(25, limit_val_batches=0).history._repr_html_()
    assert "The last 20 of 25 epochs" in page
    assert page.count("<tr>") == 21
    assert "<td>24</td>" in page
    assert "<td>4</td>" not in page


def test_curves_show_themselves_in_a_notebook(tmp_path: Path) -> None:
    """`plot` returns a figure that a notebook shows as it stands, with a panel for each group of metrics."""
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    figure = fit(2).history.plot(tmp_path / "curves.png")
    assert isinstance(figure, figure_class)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [axes.get_ylabel() for axes in figure.axes] == ["number", "loss"]
    assert len(figure.axes[1].lines) == 3
    with pytest.raises(KeyError, match=r"'lost' was never logged\. Logged: epoch, number"):
        fit(1).history.plot(keys=iter(["number", "lost"]))


@pytest.mark.parametrize(
    ("missing", "act", "words"),
    [
        ("pandas", "to_frame", r"History.to_frame: this needs pandas. Run: pip install pandas"),
        ("matplotlib.figure", "plot", r"History.plot: this needs matplotlib. Run: pip install 'lt-core\[plot\]'"),
    ],
)
def test_what_is_not_installed_is_one_error(
    missing: str, act: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pandas or matplotlib the error names the command that installs it; the rest of the history works."""
    history = fit(2).history
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "lt_core.tracking.picture", raising=False)
    with pytest.raises(LTError, match=words):
        getattr(history, act)()
    assert ("<img" in history._repr_html_()) == (missing == "pandas")


def test_an_empty_history_is_an_empty_frame() -> None:
    """Where nothing was logged, the frame has no rows, and a notebook says so."""
    pytest.importorskip("pandas")
    assert History().to_frame().empty
    assert History()._repr_html_() == "<div>Nothing was logged.</div>"
