"""Watch a training: norms of its gradients, and spikes of its loss."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import GradNorm, ModelCheckpoint, SpikeDetection, TrainingSpikeException
from lt_interface import MisconfigurationException
from lt_interface.errors import ConfigError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


class Net(LightningModule):
    """Module of two layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 1)
        self.norms: list[dict[str, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.second(self.first(batch)).square().mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Reads(Callback):
    """Callback that reads what was logged in each step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("grad_")}
        pl_module.norms.append(found)


def train(*callbacks: Any, module: Any = None, data: Any = None, **flags: Any) -> Any:
    module = Net() if module is None else module
    trainer = Trainer(**{**QUIET, "max_epochs": 1, "callbacks": [*callbacks], **flags})
    trainer.fit(module, DataLoader(X, batch_size=2) if data is None else data)  # type: ignore[arg-type]
    return module


def by_hand(order: float, window: int, clip: float = 0.0) -> list[float]:
    """Return the norm before each step of a loop that is written by hand."""
    module, norms = Net(), []
    optimizer = module.configure_optimizers()
    for samples in X.split(2 * window):
        optimizer.zero_grad()
        for batch in samples.split(2):
            (module.training_step(batch, 0) * 2 / len(samples)).backward()
        whole = torch.cat([p.grad.flatten() for p in module.parameters()])  # type: ignore[union-attr]
        norms.append(torch.linalg.vector_norm(whole, order).item())
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return norms


@pytest.mark.parametrize("order", [2, 1.0, "inf"])
@pytest.mark.parametrize("window", [1, 4])
def test_the_norm_is_that_of_each_step(order: Any, window: int) -> None:
    """The norm of a window's gradients is logged once it is complete, of a short one, too, before clipping."""
    flags = {"accumulate_grad_batches": window, "gradient_clip_val": 0.05}
    norms = train(GradNorm(order), Reads(), **flags).norms
    name, expected = f"grad_{float(order)}_norm_total", by_hand(float(order), window, clip=0.05)
    assert [n[name] for n in (norms if window == 1 else (norms[3], norms[5]))] == pytest.approx(expected, rel=1e-5)
    assert all(list(n) == [name] for n in norms[window - 1 :])


def test_each_parameter_has_a_norm_if_asked() -> None:
    """With per_parameter the names are those of grad_norm; the whole is the same with and without."""
    found, alone = train(GradNorm(per_parameter=True), Reads()).norms[0], train(GradNorm(), Reads()).norms[0]
    assert set(found) == {f"grad_2.0_norm/{n}" for n, _ in Net().named_parameters()} | {"grad_2.0_norm_total"}
    assert found["grad_2.0_norm_total"] == pytest.approx(alone["grad_2.0_norm_total"])
    assert sum(v**2 for n, v in found.items() if "/" in n) == pytest.approx(found["grad_2.0_norm_total"] ** 2)


def test_manual_steps_are_watched_too() -> None:
    """Under manual optimization the norm is logged with each step of an optimizer."""

    class Manual(Net):
        automatic_optimization = False

        def training_step(self, batch: Tensor, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    norms = train(GradNorm(), Reads(), module=Manual()).norms
    assert [n["grad_2.0_norm_total"] for n in norms] == pytest.approx(by_hand(2, 1), rel=1e-5)


def test_a_bar_shows_the_norm_of_all_and_parameters_without_gradients_are_left_out() -> None:
    """Of what is logged the whole's norm goes to the bar; frozen parameters have none; nothing trained changes."""
    module = Net()
    module.first.requires_grad_(False)
    plain = Net()
    plain.first.requires_grad_(False)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[GradNorm(per_parameter=True, prog_bar=True)])
    trainer.fit(module, DataLoader(X, batch_size=2))  # type: ignore[arg-type]
    assert list(trainer.progress_bar_metrics) == ["grad_2.0_norm_total"]
    assert {n for n in trainer.callback_metrics if "/" in n} == {
        "grad_2.0_norm/second.weight",
        "grad_2.0_norm/second.bias",
    }
    assert torch.equal(train(module=plain).second.weight, module.second.weight)


@pytest.mark.parametrize("order", [0, -1, "two", None])
def test_an_order_that_is_none_is_refused(order: Any) -> None:
    """A norm's order is a number above 0, or "inf"."""
    with pytest.raises(ConfigError, match=r"GradNorm\(norm_type\): the order must be above 0"):
        GradNorm(order)


class Losses(LightningModule):
    """Module whose losses are given."""

    def __init__(self, *losses: float | None) -> None:
        super().__init__()
        self.layer, self.losses = nn.Linear(1, 1), losses

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        value = self.losses[batch_idx]
        return None if value is None else self.layer.weight.sum() * 0 + value

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def spike(folder: Path, *losses: float | None, flags: Any = None, **arguments: Any) -> int | None:
    """Return the batch at which training ends, or None."""
    data = [torch.zeros(1)] * len(losses)
    watch = SpikeDetection(exclude_batches_path=folder, **arguments)
    try:
        train(watch, module=Losses(*losses), data=data, **(flags or {}))
    except TrainingSpikeException as error:
        return error.batch_idx
    return None


CASES: list[tuple[tuple[float, ...], dict[str, Any], int | None]] = [
    ((1, 1, 1, 1, 1), {}, None),
    ((1, 1, 1, 3, 1), {}, 3),
    ((1, 1, 1, 2.9, 1), {}, None),
    ((3, 1, 1, 1), {}, None),
    ((1, 1, 1, -5), {}, None),  # better is no spike
    ((-1, -1, -1, -4, 1), {"mode": "max"}, 3),
    ((1, 1, 1, 9, 1), {"mode": "max"}, None),
    ((1, 9, 1, 9), {"warmup": 3}, None),
    ((1, 1, 1, 9), {"warmup": 3}, 3),
    ((1, 1, 1, 3), {"atol": 5.0}, None),
    ((1, 1, 1, 6), {"atol": 5.0}, 3),
    ((1, 1, 1, 1.6), {"atol": 0.5, "rtol": None}, 3),
    ((9, 9, 9, 1, 1, 4), {"window": 2}, 5),
    ((9, 9, 9, 1, 1, 4), {}, None),
    ((1, 1, math.nan, 1), {}, 2),
    ((1, 1, math.inf, 1, 9), {"finite_only": False}, 4),
    ((math.nan, 1, 1, 9), {}, 3),  # in the warm-up
]


@pytest.mark.parametrize(("losses", "arguments", "batch"), CASES, ids=str)
def test_a_jump_ends_training(losses: tuple[float, ...], arguments: Any, batch: int | None, tmp_path: Path) -> None:
    """A loss that is worse than the last one, and further from the mean than both distances, is a spike."""
    assert spike(tmp_path, *losses, **arguments) == batch
    path = tmp_path / "skip_batches.json"
    assert (json.loads(path.read_text()) if batch else None) == ([batch - 1, batch] if batch else None)
    assert path.exists() == (batch is not None)


def test_bad_batches_are_added_to_the_file(tmp_path: Path) -> None:
    """A second run adds to what the file lists; a file that is no list is written anew."""
    file = tmp_path / "deep" / "bad.json"
    assert spike(file, 1, 1, 9) == 2
    assert spike(file, math.nan, warmup=0) == 0
    assert json.loads(file.read_text()) == [1, 2, 0]
    file.write_text("{")
    assert spike(file, 1, 9) == 1
    assert json.loads(file.read_text()) == [0, 1]


def test_a_short_window_is_no_spike(tmp_path: Path) -> None:
    """The loss is compared as training_step returned it, whatever windows it is divided for; None is passed over."""
    assert spike(tmp_path, 1, 1, 1, 1, 1.4, flags={"accumulate_grad_batches": 4}) is None
    assert spike(tmp_path, 1, 1, 1, 1, 3, flags={"accumulate_grad_batches": 4}) == 4
    with pytest.warns(UserWarning, match="returned None"):
        assert spike(tmp_path, 1, None, 1, 1, 3) == 4


def test_a_resumed_run_judges_as_a_whole_one(tmp_path: Path) -> None:
    """What was seen before a checkpoint in mid-epoch counts behind it: the mean, the last loss and the warm-up."""
    losses, found = (9, 1, 1, 1, 1, 5, 1), []
    for steps in (-1, 3):
        saver = ModelCheckpoint(tmp_path / str(steps), every_n_train_steps=1, save_top_k=-1)
        path = None
        for limit, until in ((steps, 3), (-1, None)) if steps > 0 else ((-1, None),):
            watch, module = SpikeDetection(window=3, warmup=4, exclude_batches_path=tmp_path), Losses(*losses)
            flags = {"max_steps": limit, "enable_checkpointing": True}
            trainer = Trainer(**{**QUIET, "max_epochs": 1, "callbacks": [watch, saver], **flags})
            try:
                trainer.fit(module, [torch.zeros(1)] * 7, ckpt_path=path)
            except TrainingSpikeException as error:
                found.append((error.batch_idx, str(error), watch.state_dict()["recent"]))
            path = tmp_path / str(steps) / "epoch=0-step=3.ckpt"
            assert path.exists() or until is None
    assert found[0][0] == 5
    assert found[0] == found[1]


def test_the_error_travels_and_names_the_batch() -> None:
    """The exception keeps its batch through pickling, as from a rank, and its text."""
    error = pickle.loads(pickle.dumps(TrainingSpikeException(7, "Net: jumped")))
    assert (error.batch_idx, str(error)) == (7, "Net: jumped")
    assert str(TrainingSpikeException(3)) == "Training spike in batch 3."


def test_arguments_and_a_missing_loss_are_refused(tmp_path: Path) -> None:
    """All wrong arguments are one error; a step without a loss cannot be judged."""
    with pytest.raises(ConfigError, match=r"3 problems(.|\n)*mode(.|\n)*window(.|\n)*warmup"):
        SpikeDetection(mode="least", window=0, warmup=-1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*atol=nan\): must be a number(.|\n)*rtol='2'"):
        SpikeDetection(atol=float("nan"), rtol="2")  # type: ignore[arg-type]

    class Manual(Losses):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"value": torch.zeros(())}

    with pytest.raises(MisconfigurationException, match=r"needs the loss.*Got keys \['value'\]"):
        train(SpikeDetection(exclude_batches_path=tmp_path), module=Manual(), data=[torch.zeros(1)])
