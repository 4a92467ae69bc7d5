"""Test StochasticWeightAveraging: its average, its learning rates, BatchNorm, resumes and refusals."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader
from weights import assert_equal

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EMAWeightAveraging, LambdaCallback, StochasticWeightAveraging
from lt_interface import ConfigError

SAMPLES = torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


class Net(LightningModule):
    """Network with or without BatchNorm, and with a scheduler if it is asked for one."""

    def __init__(self, norm: bool = False, scheduler: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(3) if norm else nn.Identity()
        self.scheduler = scheduler
        self.starts: list[dict[str, Tensor]] = []
        self.rates: list[float] = []
        self.steps = 0

    def training_step(self, batch: Tensor) -> Tensor:
        self.steps += 1
        loss = (self.last(self.norm(self.first(batch))) - 1).square().mean()
        self.log("loss", loss, on_epoch=True)
        return loss

    def on_train_epoch_start(self) -> None:
        self.starts.append({name: value.clone() for name, value in self.state_dict().items()})
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        schedulers = [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)] if self.scheduler else []
        return [optimizer], schedulers


def fit(swa: Any, epochs: int = 6, net: Net | None = None, ckpt_path: Any = None, **flags: Any) -> Net:
    net = net or Net()
    data = DataLoader(SAMPLES, 4, shuffle=True, generator=torch.Generator().manual_seed(2))
    callbacks = [swa, *flags.pop("callbacks", [])]
    Trainer(**{**QUIET, "max_epochs": epochs, "callbacks": callbacks, **flags}).fit(net, data, ckpt_path=ckpt_path)
    return net


@pytest.mark.parametrize("start", [4, 0.8])
def test_no_epoch_at_all_is_no_mistake(start: Any) -> None:
    """A trainer that shall train nothing leaves the module as it is."""
    assert_equal(fit(StochasticWeightAveraging(0.05, start), max_epochs=0), Net())


@pytest.mark.parametrize(("start", "first"), [(4, 3), (0.67, 3), (1, 0), (6, 5), (0.0, 0), (1.0, 5)])
def test_the_module_ends_with_the_mean_of_epoch_starts(start: Any, first: int) -> None:
    """All weights with which the epochs from the given one on began weigh the same in what the module ends with."""
    net = fit(StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=start))
    for name, value in net.state_dict().items():
        mean = torch.stack([state[name] for state in net.starts[first:]]).mean(0)
        torch.testing.assert_close(value, mean, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("scheduler", [True, False])
def test_the_learning_rate_moves_to_its_own(scheduler: bool) -> None:
    """From the first epoch on SWALR takes the place of the module's scheduler, or is the only one."""
    swa = StochasticWeightAveraging(0.4, 3, annealing_epochs=2, annealing_strategy="linear")
    before = [0.1, 0.05, 0.025] if scheduler else [0.1, 0.1, 0.1]
    middle = (before[2] + 0.4) / 2
    assert fit(swa, net=Net(scheduler=scheduler)).rates == pytest.approx([*before, middle, 0.4, 0.4])


def test_an_own_function_averages() -> None:
    """avg_fn gets the average, the weights and the number of updates before."""
    net = fit(StochasticWeightAveraging(0.05, 4, avg_fn=lambda average, value, number: (average + value) / 2))
    a, b, c = (state["last.bias"] for state in net.starts[3:])
    torch.testing.assert_close(net.last.bias, ((a + b) / 2 + c) / 2)


def test_statistics_of_batch_norm_are_those_of_the_average() -> None:
    """One more pass over the data, which neither trains nor counts, makes running mean and variance of the average."""
    net = fit(StochasticWeightAveraging(0.05, 4, device=None), net=Net(norm=True))
    activations = net.first(SAMPLES).detach()
    torch.testing.assert_close(net.norm.running_mean, activations.mean(0))
    assert net.norm.momentum == 0.1
    assert (net.norm.num_batches_tracked, net.steps, net.trainer.current_epoch) == (4, 28, 6)
    assert net.trainer.callback_metrics["loss_epoch"] > 0


@pytest.mark.parametrize("at", [3, 14, 21, 24])
@pytest.mark.parametrize("norm", [False, True])
def test_a_resumed_run_ends_with_the_same_average(at: int, norm: bool, tmp_path: Path) -> None:
    """A run cut before or inside the averaged epochs, or at its end, goes on to the same weights, to the bit."""

    def swa() -> StochasticWeightAveraging:
        return StochasticWeightAveraging(0.4, 4, annealing_epochs=2)

    def save(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == at:
            trainer.request_checkpoint(tmp_path / "a.ckpt")

    def stop(trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == at + 1:
            raise KeyboardInterrupt

    whole = fit(swa(), net=Net(norm))
    with suppress(KeyboardInterrupt):
        fit(swa(), net=Net(norm), callbacks=[LambdaCallback(on_train_batch_end=save, on_train_batch_start=stop)])
    again = fit(swa(), net=Net(norm), ckpt_path=tmp_path / "a.ckpt")
    assert_equal(again, whole)


def test_training_goes_on_from_the_trained_weights(tmp_path: Path) -> None:
    """A file that is saved after the fit resumes from the trained weights, in the order of data without the pass."""
    longer = fit(EMAWeightAveraging(decay=0), 8, Net(True, False))
    net = fit(StochasticWeightAveraging(0.05, 6, annealing_epochs=10**9), 6, Net(True, False))
    net.trainer.save_checkpoint(tmp_path / "a.ckpt")
    state = Net.load_from_checkpoint(tmp_path / "a.ckpt", norm=True).state_dict()
    assert torch.equal(state["last.bias"], net.last.bias)
    swa = StochasticWeightAveraging(0.05, 6, annealing_epochs=10**9)
    again = fit(swa, 8, Net(True, False), ckpt_path=tmp_path / "a.ckpt")
    assert torch.equal(again.starts[-1]["last.bias"], longer.starts[-1]["last.bias"])


class Two(Net):
    """Network with two optimizers that are stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.first, self.last)]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StochasticWeightAveraging(0.0), "swa_lrs=0.0"),
        (lambda: StochasticWeightAveraging([0.1, -1.0]), "swa_lrs"),
        (lambda: StochasticWeightAveraging(0.1, 0), "swa_epoch_start=0"),
        (lambda: StochasticWeightAveraging(0.1, 1.5), "swa_epoch_start=1.5"),
        (lambda: StochasticWeightAveraging(0.1, True), "swa_epoch_start=True"),
        (lambda: StochasticWeightAveraging(0.1, annealing_strategy="linar"), 'Did you mean "linear"'),  # type: ignore[arg-type]
        (lambda: StochasticWeightAveraging(0.1, annealing_epochs=-1), "annealing_epochs=-1"),
        (lambda: StochasticWeightAveraging(0.1, avg_fn="mean"), "avg_fn='mean'"),  # type: ignore[arg-type]
        (lambda: fit(StochasticWeightAveraging(0.1, 7)), "at most max_epochs=6"),
        (lambda: fit(StochasticWeightAveraging(0.1), max_steps=3, epochs=-1), "max_epochs must say"),
        (lambda: fit(StochasticWeightAveraging([0.1, 0.2])), "one rate for each parameter group"),
        (lambda: fit(StochasticWeightAveraging(0.1), net=Two()), "one optimizer"),
        (lambda: fit(StochasticWeightAveraging(0.1), callbacks=[EMAWeightAveraging()]), "one callback averages"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    """Wrong arguments, and a fit that cannot be averaged, are one error before the first batch."""
    with pytest.raises(ConfigError, match=text):
        make()
