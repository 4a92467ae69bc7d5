"""Manual optimization on ranks, where ``manual_backward`` and ``loss.backward()`` are mixed over several optimizers."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import QUIET, Net
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Trainer


def loader(batch_size: int) -> DataLoader[Any]:
    """Return a loader of 24 samples in their order."""
    samples = torch.arange(96.0).reshape(24, 4) / 96
    return DataLoader(TensorDataset(samples, samples[:, :1]), batch_size=batch_size)


class Mixed(Net):
    """Network of two optimizers whose backward passes are the engine's (``"e"``) or the user's own (``"u"``).

    Args:
        order: Whose pass comes first, and whose second.
        way: ``"together"`` runs both passes before both steps, ``"in turn"`` steps between them, ``"toggled"`` freezes
            the other optimizer's parameters meanwhile.
    """

    def __init__(self, order: str, way: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.order, self.way = order, way

    def backward_of(self, number: int, loss: Tensor) -> None:
        """Run the backward pass of one of the two losses."""
        if self.order[number] == "e":
            self.manual_backward(loss)
        else:
            loss.backward()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        one, two = self.optimizers()  # type: ignore[misc]
        hidden = torch.tanh(self.first(batch[0]))
        if self.way == "together":
            one.zero_grad()
            two.zero_grad()
            self.backward_of(0, hidden.square().mean())
            self.backward_of(1, self.last(self.middle(hidden.detach())).square().mean())
            one.step()
            two.step()
            return
        for number, optimizer in enumerate((one, two)):
            if self.way == "toggled":
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.backward_of(number, self.loss(batch))
            optimizer.step()
            if self.way == "toggled":
                self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        rest = [*self.middle.parameters(), *self.last.parameters()]
        return torch.optim.SGD(self.first.parameters(), 0.1, momentum=0.9), torch.optim.SGD(rest, 0.1)


class Thawing(Mixed):
    """The same network, its later layers frozen until the second batch."""

    def setup(self, stage: str) -> None:
        self.middle.requires_grad_(False)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.middle.requires_grad_(bool(batch_idx))


def trained(net: Net, folder: Path, ranks: int) -> list[Tensor]:
    """Return the parameters of a network after two epochs."""
    several = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    trainer = Trainer(**QUIET, max_epochs=2, default_root_dir=folder, **several)
    trainer.fit(net, loader(8 // ranks))
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize(
    ("kind", "order", "way"),
    [
        (Mixed, "eu", "together"),
        (Mixed, "ue", "together"),
        (Mixed, "eu", "toggled"),
        (Thawing, "uu", "in turn"),
        pytest.param(Mixed, "eu", "in turn", marks=pytest.mark.slow),
        pytest.param(Mixed, "ue", "in turn", marks=pytest.mark.slow),
        pytest.param(Mixed, "ue", "toggled", marks=pytest.mark.slow),
        pytest.param(Thawing, "eu", "in turn", marks=pytest.mark.slow),
        pytest.param(Thawing, "ue", "in turn", marks=pytest.mark.slow),
    ],
)
def test_both_kinds_of_backward_passes_are_averaged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: type[Mixed], order: str, way: str
) -> None:
    """Two ranks train as one process does, whichever backward passes are the user's own, and torch says nothing."""
    alone, pair = trained(kind(order, way), tmp_path, 1), trained(kind(order, way), tmp_path, 2)
    torch.testing.assert_close(pair, alone, rtol=0, atol=1e-6)
    assert "find_unused_parameters" not in capfd.readouterr().err


class Windows(Net):
    """Network that steps after two batches, the first one's gradients not exchanged.

    Args:
        user: Whether the backward passes are the user's own.
        context: Where the context comes from.
    """

    def __init__(self, user: bool, context: str) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.user, self.context = user, context

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        closes = batch_idx % 2
        model, strategy = self.trainer.model, self.trainer.strategy
        held = {"model": model.no_sync, "strategy": strategy.block_backward_sync}[self.context]  # type: ignore[attr-defined]
        with nullcontext() if closes else held():
            loss = self.loss(batch) / 2
            if self.user:
                loss.backward()
            else:
                self.manual_backward(loss)
        if not closes:
            grads = torch.cat([p.grad.flatten() for p in self.parameters() if p.grad is not None])
            alike = torch.equal(*self.all_gather(grads)) if self.trainer.world_size > 1 else False
            assert not alike
            return
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(("user", "context"), [(False, "model"), (True, "strategy")])
def test_passes_in_a_context_are_exchanged_at_its_end(tmp_path: Path, user: bool, context: str) -> None:
    """Gradients of passes in no_sync stay on their rank until the next pass outside of it, which averages all."""
    alone, pair = trained(Windows(user, context), tmp_path, 1), trained(Windows(user, context), tmp_path, 2)
    torch.testing.assert_close(pair, alone, rtol=0, atol=1e-6)
