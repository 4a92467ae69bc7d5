"""Test that callbacks find a learning rate and a batch size inside a call, and that the call goes on with them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch.utils.data import DataLoader
from tuned import Net, Noisy, trainer

from lt_core import Trainer, seed_everything
from lt_core.callbacks import BatchSizeFinder, LearningRateFinder, ModelCheckpoint
from lt_core.callbacks.lr_finder import LRFinder
from lt_interface import MisconfigurationException

RATES: dict[str, Any] = {"num_training_steps": 20, "early_stop_threshold": None}


def test_fit_goes_on_with_the_rate_that_was_found(tmp_path: Path) -> None:
    """Attribute, groups and schedulers have the rate, as if configure_optimizers had been called with it."""

    class Noting(Net):
        def on_train_epoch_start(self) -> None:
            self.rates = [*getattr(self, "rates", ()), self.trainer.optimizers[0].param_groups[0]["lr"]]

    net, finder = Noting(), LearningRateFinder(**RATES)
    runner = trainer(tmp_path, logger=False, callbacks=[finder], max_epochs=3)
    runner.fit(net)
    assert finder.optimal_lr is not None
    rate = finder.optimal_lr.suggestion()
    assert net.lr == net.hparams.lr == rate
    assert net.rates == [pytest.approx(rate), pytest.approx(rate / 2), pytest.approx(rate / 4)]


def test_a_trial_runs_a_batch_as_training_does(tmp_path: Path) -> None:
    """The hooks round a step, the data's and the optimizer's come in one order in both, and may log in both."""
    names = (
        "on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer on_train_batch_start training_step"
    )
    names += " on_before_zero_grad on_before_backward on_after_backward on_before_optimizer_step on_train_batch_end"
    calls: list[str] = []

    def noting(name: str, own: Any) -> Any:
        def hook(self: Net, *args: Any) -> Any:
            calls.append(name)
            if "transfer" not in name:
                self.log(name, 1.0)
            return own(self, *args)

        return hook

    kind = type("Noting", (Net,), {name: noting(name, getattr(Net, name)) for name in names.split()})
    finder = LearningRateFinder(num_training_steps=3, update_attr=False)
    trainer(tmp_path, logger=False, callbacks=[finder], max_steps=2).fit(kind())
    assert calls == 5 * names.split()


def one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[g["lr"] for g in optimizer.param_groups], total_steps=16
    )


def warm_up(optimizer: Any) -> Any:
    first = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 4)
    second = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [first, second], [4])


SCHEDULES = {"one cycle": one_cycle, "warm-up": warm_up}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_schedule_goes_on_from_the_rate_that_was_found(tmp_path: Path, schedule: str) -> None:
    """A schedule of each step gives the rates that it would give had it been made with the rate found."""

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD([{"params": self.parameters(), "lr": self.lr}], lr=self.lr)
            return [optimizer], [{"scheduler": SCHEDULES[schedule](optimizer), "interval": "step"}]

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.rates = [*getattr(self, "rates", ()), self.trainer.optimizers[0].param_groups[0]["lr"]]

    found, made = Scheduled(), Scheduled()
    finder = LearningRateFinder(**RATES, min_lr=1e-4)
    trainer(tmp_path, logger=False, callbacks=[finder]).fit(found)
    made.lr = found.lr
    trainer(tmp_path, logger=False).fit(made)
    assert found.rates == pytest.approx(made.rates)
    assert found.lr != 0.01


def test_fit_goes_on_with_the_size_that_was_found(tmp_path: Path) -> None:
    """Training after a search is that with the size given, bit for bit, by an attribute or by a loader given."""

    def run(finds: bool, given: bool) -> Any:
        seed_everything(1)
        net = Net(most=8, batch_size=2 if finds else 8)
        net.data = Noisy()
        loaders = [net.loader()] if given else []
        callbacks = [BatchSizeFinder()] if finds else []
        runner = trainer(tmp_path, logger=False, enable_checkpointing=False, callbacks=callbacks)
        runner.fit(net, *loaders)
        if finds:
            assert callbacks[0].optimal_batch_size == 8
        return [tensor.tolist() for tensor in net.state_dict().values()], runner.global_step

    for given in (False, True):
        assert run(True, given) == run(False, given)


@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_an_evaluation_goes_on_with_the_size_that_was_found(call: str) -> None:
    """Each evaluation finds the size for its own step, and runs in batches of it."""
    net, finder = Net(most=8), BatchSizeFinder()
    seen: list[int] = []

    class Noting(Net):
        def on_predict_batch_end(self, outputs: Any, batch: Any, *args: Any) -> None:
            seen.append(len(batch))

        on_test_batch_end = on_validation_batch_end = on_predict_batch_end

    net.__class__ = Noting
    getattr(Trainer(callbacks=[finder], **QUIET, max_epochs=1), call)(net)
    assert finder.optimal_batch_size == net.batch_size == 8
    assert seen[-4:] == [8] * 4


def test_validation_in_fit_finds_no_size() -> None:
    """A validation inside fit, the sanity check too, goes on with the size of the fit."""
    net, finder = Net(most=8), BatchSizeFinder()
    Trainer(callbacks=[finder], max_epochs=1, **QUIET).fit(net)
    assert net.batch_size == 8
    assert net.sizes.count(8) <= 3


def test_accumulation_keeps_the_global_batch(tmp_path: Path) -> None:
    """With keep_global_batch a step of the fit has as many samples as before, in more batches."""
    net, finder = Net(most=5, batch_size=16), BatchSizeFinder("binsearch", keep_global_batch=True)
    runner = trainer(tmp_path, logger=False, callbacks=[finder])
    runner.fit(net)
    assert (net.batch_size, runner.accumulate_grad_batches, runner.global_step) == (4, 4, 4)


class Milestones(LearningRateFinder):
    """Callback that finds a rate at the beginning of some epochs."""

    def __init__(self, milestones: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self.milestones, self.found = milestones, dict[int, Any]()

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.lr_find(trainer, pl_module)
            self.found[trainer.current_epoch] = pl_module.lr


class SizeMilestones(BatchSizeFinder):
    """Callback that finds a size at the beginning of some epochs."""

    def on_fit_start(self, *args: Any, **kwargs: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        pl_module.most = 4 * (trainer.current_epoch + 1)
        self.scale_batch_size(trainer, pl_module)


def test_a_subclass_finds_at_milestones(tmp_path: Path) -> None:
    """Rates and sizes are found at epochs' starts, and each epoch runs with what it found."""
    net, finder = Net(), Milestones((1,), **RATES)
    runner = trainer(tmp_path, logger=False, callbacks=[finder])
    runner.fit(net)
    assert list(finder.found) == [0, 1]
    net = Net(batch_size=2)
    runner = trainer(tmp_path, logger=False, callbacks=[SizeMilestones()], enable_checkpointing=False)
    runner.fit(net)
    assert (net.batch_size, runner.global_step) == (8, 32 // 4 + 32 // 8)


def test_a_search_at_a_milestone_changes_nothing_else(tmp_path: Path) -> None:
    """With update_attr=False a fit with searches at each epoch's start is the fit without, bit for bit."""

    def run(*callbacks: Any) -> Any:
        seed_everything(1)
        net = Net()
        runner = trainer(tmp_path, logger=False, callbacks=[*callbacks], enable_checkpointing=False)
        runner.fit(net)
        return [t.tolist() for t in net.state_dict().values()], net.losses, dict(runner.history)

    assert repr(run(Milestones((1,), update_attr=False, **RATES))) == repr(run())


@pytest.mark.parametrize("kind", ["rate", "size"])
def test_a_resumed_run_goes_on_with_what_was_found(tmp_path: Path, kind: str) -> None:
    """A fit that is cut in mid-epoch and resumed searches no second time, and ends with the same bits."""

    def callbacks(folder: str) -> list[Any]:
        finder = LearningRateFinder(**RATES) if kind == "rate" else BatchSizeFinder()
        return [finder, ModelCheckpoint(tmp_path / folder, every_n_train_steps=3, save_top_k=-1, filename="{step}")]

    def run(folder: str, resumes: bool = False, **more: Any) -> Any:
        seed_everything(1)
        net = Net(most=8, batch_size=2)
        runner = trainer(tmp_path, logger=False, callbacks=callbacks(folder), **more)
        runner.fit(net, ckpt_path=tmp_path / "cut" / "step=3.ckpt" if resumes else None)
        return [t.tolist() for t in net.state_dict().values()], net.lr, net.batch_size, net.calls

    whole = run("whole")
    run("cut", max_steps=3)
    resumed = run("cut", resumes=True)
    assert resumed[:-1] == whole[:-1]
    assert resumed[-1] == whole[-1] - 3  # no search: each step since the file is one call


def test_a_development_run_finds_nothing() -> None:
    """With fast_dev_run the callbacks warn and leave the rate and the size alone."""
    net = Net()
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    runner = Trainer(fast_dev_run=True, callbacks=[LearningRateFinder(), BatchSizeFinder()], **quiet)
    with pytest.warns(UserWarning, match="fast_dev_run tries no"):
        runner.fit(net)
    assert (net.lr, net.batch_size, net.calls) == (0.01, 4, 1)


def test_wrong_arguments_are_reported_together() -> None:
    """All that is wrong with a callback's arguments is one error, where it is made."""
    with pytest.raises(MisconfigurationException) as error:
        LearningRateFinder(min_lr=1, max_lr=0.1, num_training_steps=2, mode="log", early_stop_threshold=-1)
    assert str(error.value).count("LearningRateFinder(") == 4
    with pytest.raises(MisconfigurationException) as error:
        BatchSizeFinder(mode="linear", steps_per_trial=0, init_val=0.5, max_trials=True, margin=2, max_val=0)  # type: ignore[arg-type]
    assert str(error.value).count("BatchSizeFinder(") == 6


def test_what_cannot_be_found_is_an_error_before_the_first_batch() -> None:
    """Manual optimization and a missing attribute are one error, and no batch is trained."""
    net = Net()
    net.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="manual optimization") as error:
        Trainer(callbacks=[LearningRateFinder(attr_name="rate")], max_epochs=1, **QUIET).fit(net)
    assert "'rate'" in str(error.value)
    with pytest.raises(MisconfigurationException, match='Did you mean "batch_size"'):
        Trainer(callbacks=[BatchSizeFinder(batch_arg_name="batchsize")], max_epochs=1, **QUIET).fit(net)
    assert net.calls == 0


def curve(*losses: float, mode: str = "linear") -> LRFinder:
    found = LRFinder(mode, 1, len(losses), len(losses))
    found.results = {"lr": [found.rate(i) for i in range(len(losses))], "loss": list(losses)}
    return found


@pytest.mark.parametrize(("method", "expected"), [("steepest", 4), ("valley", 3), ("minimum", 0.8)])
def test_suggestions(method: str, expected: float) -> None:
    """The steepest fall, half-way down the longest fall, or a tenth of the lowest loss's rate."""
    found = curve(9, 8.9, 8.5, 6, 3, 2.5, 2, 1.8, 5, 8)
    assert found.suggestion(skip_begin=0, skip_end=0, method=method) == pytest.approx(expected)


def test_the_steepest_fall_is_that_of_the_curve_as_it_is_drawn() -> None:
    """In exponential mode the slope is that over the rate's logarithm, as torch.gradient has it."""
    found = curve(*(math.cos(i / 9) for i in range(30)), mode="exponential")
    lrs, losses = torch.tensor(found.results["lr"][10:-1]).log10(), torch.tensor(found.results["loss"][10:-1])
    place = int(torch.gradient(losses, spacing=(lrs,))[0].argmin()) + 10
    assert found.suggestion() == found.results["lr"][place]


def test_losses_that_are_not_finite_are_left_out() -> None:
    """An infinite loss shifts nothing, and where too few are left there is no suggestion, with a warning."""
    assert curve(9, math.inf, 9, 8, 3, 1, math.nan).suggestion(0, 0) == 5
    with pytest.warns(UserWarning, match="two finite losses"):
        assert curve(*[1.0] * 12).suggestion() is None
    for wrong in ({"method": "steep"}, {"skip_begin": -1}, {"skip_end": 0.5}):
        with pytest.raises(MisconfigurationException, match=r"LRFinder\.suggestion"):
            curve(1, 2).suggestion(**wrong)  # type: ignore[arg-type]


def test_a_plot_marks_the_suggestion() -> None:
    """The figure has the losses over the rates, on the user's axes if given, and the suggestion if asked for."""
    plt = pytest.importorskip("matplotlib.pyplot")
    found = curve(*(5.0 - i / 5 for i in range(20)), mode="exponential")
    figure = found.plot(suggest=True)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert list(axes.lines[0].get_xdata()) == found.results["lr"]
    assert axes.lines[1].get_xdata()[0] == found.suggestion()
    own, ax = plt.subplots()
    assert found.plot(ax=ax) is own
    assert len(ax.lines) == 1
    plt.close("all")


def test_loaders_of_any_form_get_the_size() -> None:
    """A search leaves workers, order and collation of a loader as they are, and gives its copy another size."""
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, drop_last=True, collate_fn=torch.stack)
    finder = BatchSizeFinder(max_val=16)
    runner = Trainer(callbacks=[finder], max_epochs=1, **QUIET)
    runner.fit(Net(), loader)
    used = runner.train_dataloader
    assert (used.batch_size, used.drop_last, used.collate_fn, used.dataset) == (16, True, torch.stack, loader.dataset)
    assert used.sampler is loader.sampler
    assert loader.batch_size == 4
