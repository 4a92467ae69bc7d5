"""Trainings whose result must not depend on how many ranks share it: modules, data and flags by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lt_core import Callback, LightningModule, Trainer

GLOBAL = 8  # samples of a global batch
QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


class Net(LightningModule):
    """Network of three layers under SGD with momentum."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.middle, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))
        return output

    def loss(self, batch: list[Tensor]) -> Tensor:
        """Return the mean over the batch's samples."""
        return (self(batch[0]) - batch[1]).square().mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Lbfgs(Net):
    """Network under an optimizer that calls its closure several times."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Decayed(Net):
    """Network under the same, whose loss keeps the weights small: rounding stays as small as it is under SGD."""

    def loss(self, batch: list[Tensor]) -> Tensor:
        return super().loss(batch) + 0.1 * sum(p.square().sum() for p in self.parameters())

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=2)


class Searching(Net):
    """Network under an optimizer that decides by the loss how far it goes."""

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3, line_search_fn="strong_wolfe")


class Scheduled(Net):
    """Network under Adam, its learning rate falling with each step."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Manual(Net):
    """Network that is trained by hand: two passes a step."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        self.manual_backward(0.5 * self(batch[0]).abs().mean())
        self.clip_gradients(optimizer, 0.5, "norm")
        optimizer.step()


class ManualWindows(Manual):
    """Network that is trained by hand, a step every second batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        self.manual_backward(self.loss(batch) / 2)
        if batch_idx % 2:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Raw(Manual):
    """Network that is trained by hand, by the tensor's own method, also a part of it alone."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.loss(batch).backward()
        self.first(batch[0]).square().mean().backward()
        self.manual_backward(0.5 * self(batch[0]).abs().mean())
        optimizer.step()


class RawGan(Manual):
    """Two optimizers, and the tensor's own method."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        first, second = self.optimizers()
        self.toggle_optimizer(first)
        self.first(batch[0]).square().mean().backward()
        first.step()
        first.zero_grad()
        self.untoggle_optimizer(first)
        self.toggle_optimizer(second)
        self.loss(batch).backward()
        second.step()
        second.zero_grad()
        self.untoggle_optimizer(second)

    def configure_optimizers(self) -> Any:
        rest = [*self.middle.parameters(), *self.last.parameters()]
        return torch.optim.Adam(self.first.parameters(), lr=0.01), torch.optim.SGD(rest, lr=0.05)


class Gan(Manual):
    """Generator and discriminator, each with an optimizer."""

    toggles = True

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        parts = {0: self._generated, 1: self._judged}
        for index, loss in parts.items():
            optimizer = self.optimizers()[index]
            if self.toggles:
                self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss(batch))
            optimizer.step()
            if self.toggles:
                self.untoggle_optimizer(optimizer)

    def _generated(self, batch: list[Tensor]) -> Tensor:
        return -self.last(torch.tanh(self.first(batch[0]))).mean()

    def _judged(self, batch: list[Tensor]) -> Tensor:
        made = torch.tanh(self.first(batch[0])).detach()
        return self.last(made).mean() + (self.last(torch.tanh(self.middle(made))) - batch[1]).square().mean()

    def configure_optimizers(self) -> Any:
        judge = [*self.middle.parameters(), *self.last.parameters()]
        return torch.optim.Adam(self.first.parameters(), lr=0.01), torch.optim.Adam(judge, lr=0.01)


class FreeGan(Gan):
    """Generator and discriminator, where each loss leaves gradients in the other's layers."""

    toggles = False


class OwnBackward(Net):
    """Network that runs the backward pass itself, of three times the loss."""

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        (3 * loss).backward()


class Checkpointed(Net):
    """Network whose activations are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        hidden: Any = checkpoint(lambda y: torch.tanh(self.middle(torch.tanh(self.first(y)))), x, use_reentrant=False)
        output: Tensor = self.last(hidden)
        return output


class Normed(Net):
    """Network with batch norm of several kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8), nn.BatchNorm1d(8, affine=False, momentum=None)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.other(self.middle(torch.tanh(self.norm(self.first(x))))))
        output: Tensor = self.last(hidden)
        return output

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.9)


class CheckpointedNormed(Normed):
    """Network with batch norm inside what is computed again."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(checkpoint(lambda y: self.norm(self.first(y)), x, use_reentrant=False))
        return output + 0 * self.middle.weight.sum() + 0 * self.middle.bias.sum()


class HalfFrozenNormed(Normed):
    """Network of which one batch norm layer is in evaluation while it trains."""

    def on_train_epoch_start(self) -> None:
        self.norm.eval()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.02)


class PairNormed(Net):
    """Network whose batch norm has two values of a channel in each sample, so that one sample is enough."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x).reshape(-1, 4, 2)).reshape(-1, 8)
        output: Tensor = self.last(torch.tanh(self.middle(torch.tanh(hidden))))
        return output


class NormedGan(Gan):
    """Generator and discriminator with batch norm in both, gradients of gradients included."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def _generated(self, batch: list[Tensor]) -> Tensor:
        return -self.last(torch.tanh(self.norm(self.first(batch[0])))).mean()

    def _judged(self, batch: list[Tensor]) -> Tensor:
        made = torch.tanh(self.norm(self.first(batch[0]))).detach().requires_grad_(True)
        loss = (self.last(torch.tanh(self.other(self.middle(made)))) - batch[1]).square().mean()
        (slope,) = torch.autograd.grad(loss * len(made), made, create_graph=True)
        return loss + slope.square().sum(1).mean()

    def configure_optimizers(self) -> Any:
        judge = [*self.middle.parameters(), *self.other.parameters(), *self.last.parameters()]
        made = [*self.first.parameters(), *self.norm.parameters()]
        return torch.optim.SGD(made, lr=0.05), torch.optim.SGD(judge, lr=0.05)


class SearchingByHand(Manual):
    """Network that is trained by hand, by an optimizer that decides by the loss."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        optimizer = self.optimizers()

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(batch)
            self.manual_backward(loss)
            return loss

        optimizer.step(closure=closure)

    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.5, max_iter=3, line_search_fn="strong_wolfe")


class OwnStep(Net):
    """Network that overrides the optimizer's step and what clips."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + self.trainer.global_step)
        optimizer.step(closure=optimizer_closure)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, 0.1, "norm")


class Table(Net):
    """Network over a table whose gradients are sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.table((x[:, 0].abs() * 10).long() % 5) + x)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Skipping(Net):
    """Network that skips batches, whatever the rank."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return None if batch_idx % 3 == 1 else {"loss": self.loss(batch)}

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


class Frozen(Net):
    """Network whose first layer is frozen when it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class FewGroups(Frozen):
    """Network whose optimizer learns of the first layer later."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.middle.parameters(), *self.last.parameters()], lr=0.05, momentum=0.9)


class At(Callback):
    """A change of the module or the trainer before one batch of one epoch.

    Args:
        epoch: The epoch.
        batch: The batch; None for the epoch's start.
        change: What is called with trainer and module.
    """

    def __init__(self, epoch: int, batch: int | None, change: Callable[[Any, Any], Any]) -> None:
        self.at, self.change = (epoch, batch), change

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self.at == (trainer.current_epoch, None):
            self.change(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.at == (trainer.current_epoch, batch_idx):
            self.change(trainer, pl_module)


def unfreeze(trainer: Any, module: Any) -> None:
    """Train the first layer, too."""
    module.first.requires_grad_(True)


def freeze(trainer: Any, module: Any) -> None:
    """Train the middle layer no more."""
    module.middle.requires_grad_(False)


def add_group(trainer: Any, module: Any) -> None:
    """Train the first layer, too, in a group of its own."""
    unfreeze(trainer, module)
    trainer.optimizers[0].add_param_group({"params": list(module.first.parameters()), "lr": 0.02})


def exchange(trainer: Any, module: Any) -> None:
    """Go on with another optimizer."""
    trainer.optimizers = [torch.optim.Adam(module.parameters(), lr=0.01)]


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        module: Makes the module.
        samples: How many samples an epoch has.
        flags: The trainer's, beyond those of all.
        callbacks: Makes the callbacks.
        wrap: Makes of the module what is trained.
    """

    module: Callable[[], Any] = Net
    samples: int = 40
    flags: dict[str, Any] = field(default_factory=dict)
    callbacks: Callable[[], list[Callback]] = list
    wrap: Callable[[Any], Any] = lambda module: module


ALLOWED = 1e-6  # how far a weight or buffer may be off
DOUBLE = {"precision": "64-true"}  # where the optimizer makes much of what rounding leaves
SYNCED = {"sync_batchnorm": True}
MATRIX = {  # in every way to start ranks; all of it in single precision
    "plain": Case(),
    "accumulate 2, a short last window": Case(flags={"accumulate_grad_batches": 2}),
    "accumulate 3, a short last window": Case(flags={"accumulate_grad_batches": 3}),
    "accumulate 2, 37 samples": Case(samples=37, flags={"accumulate_grad_batches": 2}),
    "accumulate 3, 33 samples": Case(samples=33, flags={"accumulate_grad_batches": 3}),
    "clip by norm": Case(flags={"gradient_clip_val": 0.05}),
    "clip by value": Case(flags={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "LBFGS": Case(Decayed),
    "GAN, toggled": Case(Gan),
    "GAN, not toggled": Case(FreeGan),
    "33 samples": Case(samples=33),
    "37 samples": Case(samples=37),
    "unfrozen at an epoch's start": Case(Frozen, callbacks=lambda: [At(1, None, unfreeze)]),
    "unfrozen in an epoch": Case(Frozen, callbacks=lambda: [At(1, 2, unfreeze)]),
    "gradient checkpointing": Case(Checkpointed),
    "batch norm": Case(Normed, flags=SYNCED),
    "batch norm, 37 samples": Case(Normed, samples=37, flags=SYNCED),
}
CASES = {
    **MATRIX,
    "accumulate and clip": Case(flags={"accumulate_grad_batches": 2, "gradient_clip_val": 0.05}),
    "LBFGS, several closures": Case(Lbfgs, flags=DOUBLE),
    "LBFGS with a line search": Case(Searching, flags=DOUBLE),
    "LBFGS in windows": Case(Decayed, samples=37, flags={**DOUBLE, "accumulate_grad_batches": 2}),
    "a schedule": Case(Scheduled),
    "GAN, uneven": Case(Gan, samples=37),
    "GAN, not toggled, uneven": Case(FreeGan, samples=33),
    "frozen in an epoch": Case(callbacks=lambda: [At(1, 2, freeze)]),
    "unfrozen inside a window": Case(
        Frozen, flags={"accumulate_grad_batches": 2}, callbacks=lambda: [At(1, 1, unfreeze), At(2, 3, freeze)]
    ),
    "a group added in an epoch": Case(FewGroups, callbacks=lambda: [At(1, 2, add_group)]),
    "an optimizer exchanged": Case(callbacks=lambda: [At(1, None, exchange)]),
    "checkpointing in windows": Case(Checkpointed, samples=37, flags={"accumulate_grad_batches": 2}),
    "batch norm, a rank without a sample": Case(PairNormed, samples=33, flags=SYNCED),
    "batch norm in windows": Case(Normed, flags={**SYNCED, "accumulate_grad_batches": 2}),
    "batch norm computed again": Case(CheckpointedNormed, samples=37, flags=SYNCED),
    "batch norm, half of it frozen": Case(HalfFrozenNormed, samples=37, flags=SYNCED),
    "batch norm in a GAN": Case(NormedGan, flags=SYNCED),
    "an overridden step": Case(OwnStep, samples=37, flags={"accumulate_grad_batches": 2}),
    "LBFGS by hand": Case(SearchingByHand, flags=DOUBLE),
    "by hand": Case(Manual),
    "by hand, uneven": Case(Manual, samples=37),
    "by hand in windows": Case(ManualWindows),
    "by hand, without manual_backward": Case(Raw),
    "two optimizers, without manual_backward": Case(RawGan),
    "an overridden backward": Case(OwnBackward, samples=37),
    "an overridden backward in windows": Case(OwnBackward, flags={"accumulate_grad_batches": 2}),
    "a sparse table": Case(Table),
    "skipped batches": Case(Skipping, flags={"accumulate_grad_batches": 2}),
}
COMPILED = {
    "compiled": Case(wrap=lambda module: torch.compile(module, backend="eager")),
    "compiled with its gradients": Case(samples=37, wrap=lambda module: torch.compile(module, backend="aot_eager")),
    "compiled batch norm": Case(Normed, flags=SYNCED, wrap=lambda module: torch.compile(module, backend="eager")),
}


def samples(count: int) -> TensorDataset:
    """Return that many samples, the same in each process."""
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(count, 4, generator=generator), torch.randn(count, 1, generator=generator))


def train(case: Case, size: int, strategy: Any = "auto", collate: Any = None) -> dict[str, Any]:
    """Train 20 steps or more, and return weights and buffers as arrays.

    Args:
        case: The training.
        size: How many ranks share each global batch.
        strategy: The trainer's flag.
        collate: The loader's function.
    """
    module = case.module()
    flags = {k: v for k, v in case.flags.items() if size > 1 or k not in SYNCED}
    epochs = 4 * flags.get("accumulate_grad_batches", 1)
    trainer = Trainer(max_epochs=epochs, devices=size, strategy=strategy, callbacks=case.callbacks(), **QUIET, **flags)
    torch.manual_seed(7)
    loader = DataLoader(samples(case.samples), GLOBAL // size, shuffle=True, collate_fn=collate)
    trainer.fit(case.wrap(module), loader)
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def alone(case: Case) -> dict[str, Any]:
    """Return what one process trains."""
    return train(case, 1)


def rounded(case: Case) -> dict[str, Any]:
    """Return what one process trains that sees the samples of each batch in the reverse order."""
    return train(case, 1, collate=lambda batch: default_collate(batch[::-1]))


def off(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, float]:
    """Return by how much each weight and buffer is off at most."""
    assert list(found) == list(expected)
    return {name: float(abs(found[name] - value).max()) for name, value in expected.items()}
