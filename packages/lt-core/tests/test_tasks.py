"""Test the ready modules: what they train, log and predict, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer
from lt_core.tasks import ClassificationModel, RegressionModel, wrap
from lt_interface import MisconfigurationException

FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 2}
X = torch.randn(37, 4, generator=torch.Generator().manual_seed(0))
Y = X.sum(1, keepdim=True)
CLASSES = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def loader(*tensors: Tensor) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*tensors), batch_size=8)


def network(outputs: int = 1) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(4, outputs)


class Line(RegressionModel):
    """Module as the first versions' example had it: a forward, and nothing else."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__(lr=lr)
        self.save_hyperparameters()
        self.layer = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def by_hand(net: nn.Module, loss: Any, targets: Tensor, lr: float) -> nn.Module:
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    for _ in range(2):
        for x, y in loader(X, targets):
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
    return net


def test_a_forward_is_all_that_regression_needs(tmp_path: Path) -> None:
    """A subclass with a forward trains as a loop by hand, and logs loss and mean absolute error over all samples."""
    model, data = Line(), loader(X, Y)
    trainer = Trainer(**FLAGS)
    trainer.fit(model, data, data)
    expected = by_hand(network(), functional.mse_loss, Y, 0.1)
    assert torch.equal(model.layer.weight, expected.weight)  # type: ignore[arg-type]
    output = expected(X)
    values = trainer.callback_metrics
    torch.testing.assert_close(values["val_loss"], functional.mse_loss(output, Y).detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(values["val_mae"], functional.l1_loss(output, Y).detach(), rtol=1e-5, atol=1e-6)
    assert {"train_loss", "train_mae"} <= set(values)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(Line.load_from_checkpoint(tmp_path / "a.ckpt").layer.weight, model.layer.weight)


def test_classes_are_told_apart() -> None:
    """Classification trains by cross-entropy, and its accuracy is that over all samples, the short batch included."""
    model, data = ClassificationModel(network(3), lr=0.1), loader(X, CLASSES)
    trainer = Trainer(**FLAGS)
    trainer.fit(model, data, data)
    expected = by_hand(network(3), functional.cross_entropy, CLASSES, 0.1)
    assert torch.equal(model.network.weight, expected.weight)  # type: ignore[union-attr, arg-type]
    accuracy = (expected(X).argmax(1) == CLASSES).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["val_accuracy"], accuracy)
    (result,) = trainer.test(model, data, verbose=False)
    assert result["test_accuracy"] == pytest.approx(float(accuracy))


@pytest.mark.parametrize("squeezed", [False, True])
def test_two_classes_may_have_one_output(squeezed: bool) -> None:
    """Logits of the targets' shape mean two classes, with integers as targets too."""
    target = (X[:, :1] > 0).long()
    net: nn.Module = network()
    if squeezed:
        net, target = nn.Sequential(net, nn.Flatten(0)), target.squeeze(1)
    model = ClassificationModel(net, lr=0.1)
    trainer = Trainer(**{**FLAGS, "max_epochs": 40})
    trainer.fit(model, loader(X, target), loader(X, target))
    assert trainer.callback_metrics["val_accuracy"] > 0.9


def test_probabilities_are_targets() -> None:
    """Targets of the outputs' shape are probabilities; the accuracy counts the likeliest class."""
    soft = functional.one_hot(CLASSES, 3).float() * 0.9 + 0.1 / 3
    model = ClassificationModel(network(3), lr=0.1)
    trainer = Trainer(**{**FLAGS, "max_epochs": 30})
    trainer.fit(model, loader(X, soft), loader(X, soft))
    assert trainer.callback_metrics["val_accuracy"] > 0.7


@dataclass
class Output:
    """What networks of model libraries return."""

    logits: Tensor
    loss: Tensor | None = None


class Knowing(nn.Module):
    """Network that computes its own loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = network(3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.layer(x)
        return Output(logits, None if labels is None else functional.cross_entropy(logits, labels))


class Rows(torch.utils.data.Dataset[Any]):
    """Samples as mappings."""

    def __init__(self, labelled: bool = True) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": X[index], **({"labels": CLASSES[index]} if self.labelled else {})}


def test_a_network_with_its_own_loss_is_wrapped() -> None:
    """A network whose output has a loss trains on mappings, is measured, predicts, and is itself trained."""
    net = Knowing()
    model = wrap(net, lr=0.1, metrics={"hits": lambda out, y: (out.logits.argmax(1) == y).float().mean()})
    trainer = Trainer(**FLAGS)
    trainer.fit(model, DataLoader(Rows(), batch_size=8), DataLoader(Rows(), batch_size=8))
    expected = by_hand(network(3), functional.cross_entropy, CLASSES, 0.1)
    assert torch.equal(net.layer.weight, expected.weight)  # type: ignore[arg-type]
    hits = (expected(X).argmax(1) == CLASSES).float().mean()
    torch.testing.assert_close(trainer.callback_metrics["val_hits"], hits)
    found = trainer.predict(model, DataLoader(Rows(labelled=False), batch_size=37))
    assert found is not None
    torch.testing.assert_close(found[0].logits, expected(X).detach())


def test_a_network_is_wrapped_with_a_loss() -> None:
    """Any network trains with a loss and another optimizer, predicts inputs alone, and takes metric objects a stage."""

    class Count:
        def __init__(self) -> None:
            self.seen = 0

        def update(self, output: Tensor, target: Tensor) -> None:
            self.seen += len(output)

        def compute(self) -> Tensor:
            return torch.tensor(float(self.seen))

        def reset(self) -> None:
            self.seen = 0

        def __call__(self, *args: Any) -> None:
            raise AssertionError("it is updated")

    count = Count()
    net = network()
    model = wrap(net, functional.l1_loss, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), metrics={"seen": count})
    optimizer = model.configure_optimizers()
    assert (type(optimizer), optimizer.defaults["lr"]) == (torch.optim.SGD, 0.5)
    trainer = Trainer(**FLAGS)
    trainer.fit(model, loader(X, Y), loader(X, Y))
    assert float(trainer.callback_metrics["val_seen"]) == 37
    assert float(trainer.callback_metrics["train_seen"]) == 37
    assert count.seen == 0
    found = trainer.predict(model, DataLoader(TensorDataset(X), batch_size=40))
    assert found is not None
    torch.testing.assert_close(found[0], net(X).detach())


def test_what_is_wrong_is_said() -> None:
    """A module without a network, a batch that is no pair, other shapes, and an output without a loss are one error."""
    for kind in (RegressionModel, ClassificationModel):
        with pytest.raises(MisconfigurationException, match=rf"^{kind.__name__}: this needs a network"):
            kind()
    with pytest.raises(MisconfigurationException, match=r"lr\): this must be above 0\. Got 0"):
        RegressionModel(network(), lr=0)
    trainer = Trainer(**FLAGS)
    with pytest.raises(MisconfigurationException, match=r"pair of input and target\. Got list of 1"):
        trainer.fit(RegressionModel(network()), loader(X))
    with pytest.raises(MisconfigurationException, match=r"the target's shape\. Got \(8, 1\) and \(8,\)"):
        Trainer(**FLAGS).fit(RegressionModel(network()), loader(X, Y.squeeze(1)))
    with pytest.raises(MisconfigurationException, match=r"must have a loss\. Got Output without one"):
        Trainer(**FLAGS).fit(wrap(Knowing()), DataLoader(Rows(labelled=False), batch_size=8))
    with pytest.raises(MisconfigurationException, match=r"Give it to Trainer\.fit as it is"):
        wrap(LightningModule())
    with pytest.raises(MisconfigurationException, match=r"Give an nn\.Module"):
        wrap(print)  # type: ignore[arg-type]
