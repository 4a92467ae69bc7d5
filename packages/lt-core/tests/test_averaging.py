"""Test the callbacks that average weights: their numbers, what is validated and saved, resumes and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn

from lt_core import LightningModule, Trainer
from lt_core.callbacks import EMAWeightAveraging, LambdaCallback, ModelCheckpoint, WeightAveraging
from lt_core.checkpoint import load_checkpoint
from lt_interface import ConfigError

FLAGS: dict[str, Any] = {**QUIET, "num_sanity_val_steps": 0}
BATCHES = list(torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1)))


class Net(LightningModule):
    """Network with BatchNorm and a tied layer, which notes the weights that each validation uses."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.last.weight = self.first.weight
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.lock = (n for n in ())  # what cannot be copied
        self.validated: list[dict[str, Tensor]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.last(self.norm(self.first(batch))) - 1).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))
        if batch_idx == 0:
            self.validated.append(state_of(self))

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one: Any, other: Any, **how: Any) -> None:
    """Compare two states, to the bit unless a tolerance is given."""
    assert list(one) == list(other)
    for name in one:
        torch.testing.assert_close(one[name], other[name], **{"atol": 0, "rtol": 0, **how}, msg=name)


class Trail(LambdaCallback):
    """Callback that notes the trained weights after each step."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        super().__init__(on_train_batch_end=lambda trainer, module, *_: self.states.append(state_of(module)))


def fit(averaging: Any, epochs: int = 2, ckpt_path: Any = None, val: bool = True, **flags: Any) -> tuple[Net, Trail]:
    net, trail = Net(), Trail()
    callbacks = [averaging, trail, *flags.pop("callbacks", [])]
    trainer = Trainer(**{**FLAGS, "max_epochs": epochs, "callbacks": callbacks, **flags})
    trainer.fit(net, BATCHES, BATCHES[:2] if val else None, ckpt_path=ckpt_path)
    return net, trail


def ema(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """Average by hand; whole numbers keep what torch's own average makes of them."""
    average = dict(states[0])
    for state in states[1:]:
        for name, value in state.items():
            mixed = average[name] * decay + value * (1 - decay)
            average[name] = mixed.to(value.dtype)
    return average


def test_ema_is_the_average_made_by_hand() -> None:
    """The module ends with the moving average of what followed each step, buffers included, ties kept."""
    net, trail = fit(EMAWeightAveraging(decay=0.7))
    assert_same(state_of(net), ema(trail.states, 0.7), atol=1e-7, rtol=1e-6)
    assert net.last.weight is net.first.weight


def test_the_default_average_weighs_all_updates_alike() -> None:
    """WeightAveraging averages what follows each step, and torch's functions are taken where they are given."""
    net, trail = fit(WeightAveraging(use_buffers=False))
    mean = torch.stack([state["norm.weight"] for state in trail.states]).mean(0)
    torch.testing.assert_close(net.norm.weight, mean, atol=1e-7, rtol=1e-6)
    assert torch.equal(net.norm.running_mean, trail.states[-1]["norm.running_mean"])
    halves, trail = fit(WeightAveraging(avg_fn=lambda average, value, number: (average + value) / 2))
    torch.testing.assert_close(halves.last.bias, ema(trail.states, 0.5)["last.bias"], atol=1e-7, rtol=1e-6)


def test_validation_runs_on_the_average_and_training_does_not() -> None:
    """Each validation of a fit sees the average so far, and the trained weights are as without the callback."""
    net, trail = fit(EMAWeightAveraging(decay=0.7), val_check_interval=2)
    plain, other = fit(LambdaCallback(), val_check_interval=2)
    for done, seen in zip((2, 4, 7, 9), net.validated, strict=True):
        assert_same(seen, ema(trail.states[:done], 0.7), atol=1e-7, rtol=1e-6)
    assert_same(plain.validated[0], other.states[1])
    assert_same(dict(enumerate(trail.states[-1].values())), dict(enumerate(other.states[-1].values())))


def test_a_checkpoint_has_the_average_as_its_weights(tmp_path: Path) -> None:
    """The best file holds the average that was validated, two entries beside it, and loads without the callback."""
    best = ModelCheckpoint(tmp_path, monitor="val_loss")
    net, _ = fit(EMAWeightAveraging(decay=0.7), callbacks=[best], enable_checkpointing=True)
    tree = load_checkpoint(best.best_model_path)
    assert any(all(torch.equal(tree["state_dict"][k], seen[k]) for k in seen) for seen in net.validated)
    assert set(tree["averaging_state"]) == {"n_averaged"}
    assert not torch.equal(tree["current_model_state"]["norm.weight"], tree["state_dict"]["norm.weight"])
    assert set(tree["current_model_state"]) == set(tree["state_dict"]) == set(state_of(net))
    assert_same(state_of(Net.load_from_checkpoint(best.best_model_path)), dict(tree["state_dict"]))
    trainer = Trainer(**{**FLAGS, "enable_checkpointing": True}, max_epochs=1, callbacks=[EMAWeightAveraging(), best])
    [found] = trainer.validate(Net(), BATCHES[:2], ckpt_path=best.best_model_path, verbose=False)
    assert found["val_loss"] == pytest.approx(float(best.best_model_score), abs=1e-6)


def test_a_file_of_weights_alone_has_the_average(tmp_path: Path) -> None:
    """Files without the rest are what is exported: the average, and nothing beside it."""
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=3, save_weights_only=True, save_top_k=-1)
    _, trail = fit(EMAWeightAveraging(decay=0.7), callbacks=[saver], enable_checkpointing=True)
    tree = load_checkpoint(str(tmp_path / "epoch=0-step=3.ckpt"))
    assert_same(dict(tree["state_dict"]), ema(trail.states[:3], 0.7), atol=1e-7, rtol=1e-6)
    assert "current_model_state" not in tree


def cut(averaging: Any, at: int, path: Path, after: bool, **flags: Any) -> None:
    """Save after so many batches in all, or after the fit, and stop there."""
    seen, trainers = 0, []

    def save(trainer: Trainer, *_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            trainers.append(trainer)
            if not after:
                trainer.request_checkpoint(path)
            trainer.should_stop = True

    fit(averaging, callbacks=[LambdaCallback(on_train_batch_end=save)], **flags)
    if after:
        trainers[0].save_checkpoint(path)


AVERAGERS: dict[str, Any] = {
    "ema": lambda: EMAWeightAveraging(decay=0.7),
    "late": lambda: EMAWeightAveraging(decay=0.7, update_every_n_steps=3, update_starting_at_step=4),
    "epochs": lambda: EMAWeightAveraging(decay=0.7, update_every_n_steps=0, update_starting_at_epoch=1),
    "mean": lambda: WeightAveraging(use_buffers=False),
    "cpu": lambda: WeightAveraging("cpu"),
}


@pytest.mark.filterwarnings("ignore:.*no update was due")
@pytest.mark.parametrize("kind", AVERAGERS)
@pytest.mark.parametrize("at", [2, 8])
def test_a_resumed_run_ends_with_the_same_average(kind: str, at: int, tmp_path: Path) -> None:
    """A run that was cut inside an epoch goes on to the same trained and averaged weights, to the bit."""
    whole, trail = fit(AVERAGERS[kind](), epochs=3)
    cut(AVERAGERS[kind](), at, tmp_path / "a.ckpt", after=at == 8, epochs=3)
    again, rest = fit(AVERAGERS[kind](), epochs=3, ckpt_path=tmp_path / "a.ckpt")
    assert_same(state_of(again), state_of(whole))
    assert_same(rest.states[-1], trail.states[-1])


@pytest.mark.parametrize("by_file", [True, False])
def test_training_goes_on_from_the_trained_weights(by_file: bool, tmp_path: Path) -> None:
    """A fit behind another one, of the trainer or of a file that was saved after it, begins with trained weights."""

    def trained(epochs: list[int]) -> tuple[Net, Trail]:
        net, trail = Net(), Trail()
        net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.1)  # which has no state
        trainer = Trainer(**FLAGS, max_epochs=epochs[0], callbacks=[EMAWeightAveraging(decay=0.7), trail])
        trainer.fit(net, BATCHES, BATCHES[:2])
        for more in epochs[1:]:
            trainer.max_epochs = more
            if by_file:
                trainer.save_checkpoint(tmp_path / "a.ckpt")
                trainer = Trainer(**FLAGS, max_epochs=more, callbacks=[EMAWeightAveraging(decay=0.7), trail])
                nn.init.zeros_(net.first.weight)
            trainer.fit(net, BATCHES, BATCHES[:2], ckpt_path=tmp_path / "a.ckpt" if by_file else None)
        return net, trail

    (whole, trail), (again, other) = trained([3]), trained([1, 3])
    assert_same(other.states[-1], trail.states[-1])
    assert_same(state_of(again), state_of(whole))


def test_an_error_inside_a_validation_leaves_the_trained_weights() -> None:
    """What a validation raises passes, and the module is not left with the average."""

    class Breaking(Net):
        def validation_step(self, batch: Tensor, batch_idx: int) -> None:
            raise ZeroDivisionError

    net, trail = Breaking(), Trail()
    trainer = Trainer(**FLAGS, max_epochs=1, callbacks=[EMAWeightAveraging(decay=0.7), trail])
    with pytest.raises(ZeroDivisionError):
        trainer.fit(net, BATCHES, BATCHES)
    assert_same(state_of(net), trail.states[-1])


def test_without_an_update_the_module_keeps_what_was_trained() -> None:
    """An average that never began changes nothing, and is warned of."""
    with pytest.warns(UserWarning, match="EMAWeightAveraging: no update was due"):
        net, trail = fit(EMAWeightAveraging(update_starting_at_step=100))
    assert_same(state_of(net), trail.states[-1])
    assert_same(net.validated[0], trail.states[4])


@pytest.mark.parametrize("make", [WeightAveraging, lambda: EMAWeightAveraging(decay=0.5)])
def test_a_mask_is_not_averaged(make: Any, tmp_path: Path) -> None:
    """A buffer of true and false stays as training leaves it, in the module, in files and over a resume."""

    class Masked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([True, False]))

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            if self.trainer.training:
                self.mask.logical_not_()
            return super().training_step(batch, batch_idx)

    def trained(epochs: int, path: Path | None = None) -> tuple[Net, Any]:
        net, trainer = Masked(), Trainer(**FLAGS, max_epochs=epochs, callbacks=[make()])
        trainer.fit(net, BATCHES, BATCHES, ckpt_path=path)
        return net, trainer

    net, trainer = trained(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert net.get_buffer("mask").tolist() == [False, True]
    assert load_checkpoint(tmp_path / "one.ckpt")["state_dict"]["mask"].tolist() == [False, True]
    assert_same(state_of(trained(2, tmp_path / "one.ckpt")[0]), state_of(trained(2)[0]))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fit(WeightAveraging(device="cudaa")), r"device='cudaa'\): the average needs a device of this machine"),
        (lambda: fit(EMAWeightAveraging(device="cuda:70")), r"device='cuda:70'\): the average needs a device"),
        (lambda: EMAWeightAveraging(decay=1.1), "decay=1.1"),
        (lambda: EMAWeightAveraging(update_every_n_steps=-1), "update_every_n_steps=-1"),
        (lambda: EMAWeightAveraging(update_starting_at_epoch=0.5), "update_starting_at_epoch=0.5"),  # type: ignore[arg-type]
        (lambda: WeightAveraging(avg_fun=max), 'Did you mean "avg_fn"'),
        (lambda: WeightAveraging(avg_fn="mean"), "this must be a function"),
        (lambda: WeightAveraging(avg_fn=max, multi_avg_fn=max), "exclude each other"),
        (lambda: fit(WeightAveraging(), callbacks=[EMAWeightAveraging()]), "WeightAveraging and EMAWeightAveraging"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, text: str) -> None:
    """Wrong arguments and two averages at once are one error before anything runs."""
    with pytest.raises(ConfigError, match=text):
        make()
