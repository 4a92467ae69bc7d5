"""Optimizers of others that call the closure of a step as they like, in one process and on ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import QUIET, Net
from torch.utils.data import DataLoader, TensorDataset

from lt_core import Trainer

SAMPLES = torch.arange(128.0).reshape(32, 4) / 128


class Sharp(torch.optim.SGD):
    """Optimizer that looks at the loss at a second place, in the direction of the gradient, and steps by that."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if closure is None:
            raise RuntimeError("Sharp needs a closure")
        closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        moves = [0.1 * p.grad for p in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, moves)
        loss = closure()
        with torch.no_grad():
            torch._foreach_sub_(parameters, moves)
        super().step()
        return loss


class Careful(torch.optim.SGD):
    """Optimizer that goes as far as the loss is large."""

    def step(self, *args: Any) -> Any:  # type: ignore[override]
        (closure,) = args
        loss = closure()
        for group in self.param_groups:
            group["lr"] = 0.1 * float(loss.detach())
        super().step()
        return loss


class Closed(Net):
    """Network under an optimizer of a kind.

    Args:
        kind: The kind.
    """

    def __init__(self, kind: type[torch.optim.SGD]) -> None:
        super().__init__()
        self.kind = kind

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.1, momentum=0.9)


def by_hand(kind: type[torch.optim.SGD], windows: int) -> Closed:
    """Return the network after an epoch of batches of eight, several a step."""
    net = Closed(kind)
    optimizer = net.configure_optimizers()
    batches = [[part, part[:, :1]] for part in SAMPLES.split(8)]
    for first in range(0, len(batches), windows):

        def closure(first: int = first) -> Any:
            optimizer.zero_grad()
            loss = sum(net.loss(batch) / windows for batch in batches[first : first + windows])
            loss.backward()  # type: ignore[union-attr]
            return loss

        optimizer.step(closure)
    return net


@pytest.mark.parametrize("windows", [1, 2])
@pytest.mark.parametrize("kind", [Sharp, Careful])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_foreign_optimizer_gets_the_closure(
    tmp_path: Path, kind: type[torch.optim.SGD], windows: int, ranks: int
) -> None:
    """An optimizer that calls its closure twice, or decides by the loss, trains as by hand, on two ranks too."""
    several = {"devices": ranks, "strategy": "ddp_fork"} if ranks > 1 else {}
    trainer = Trainer(**QUIET, **several, max_epochs=1, default_root_dir=tmp_path, accumulate_grad_batches=windows)
    net, data = Closed(kind), TensorDataset(SAMPLES, SAMPLES[:, :1])
    trainer.fit(net, DataLoader(data, batch_size=8 // ranks))
    assert trainer.global_step == 4 // windows
    torch.testing.assert_close(net.state_dict(), by_hand(kind, windows).state_dict(), rtol=0, atol=1e-6)
