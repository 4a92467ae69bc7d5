"""Training in each number format, by hand and by the trainer, on any device; the CPU's tests and the GPU's share it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_accel import MixedPrecision
from lt_core import LightningModule, Trainer
from lt_core.checkpoint import load_checkpoint

TRUE = {"32-true": torch.float32, "64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
FORMATS = [*TRUE, *MIXED]
FORMS = ["plain", "accumulate", "norm", "value", "manual", "compiled", "closure", "LBFGS"]
BATCHES, EPOCHS = 7, 2  # with windows of 2 batches the last one is short
CLIP = 0.05
FLAGS: dict[str, Any] = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "enable_checkpointing": False,
    "max_epochs": EPOCHS,
}


def batches(planted: tuple[int, ...] = ()) -> list[tuple[Tensor, Tensor]]:
    """Return an epoch's batches, those of some indices with an infinite input."""
    generator = torch.Generator().manual_seed(3)
    made = [(torch.randn(4, 6, generator=generator), torch.randn(4, 1, generator=generator)) for _ in range(BATCHES)]
    for index in planted:
        made[index][0][0, 0] = torch.inf
    return made


def loader(planted: tuple[int, ...] = ()) -> DataLoader[Any]:
    """Return a loader of the batches."""
    samples = [(x, y) for xs, ys in batches(planted) for x, y in zip(xs, ys, strict=True)]
    return DataLoader(samples, batch_size=4)  # type: ignore[arg-type]


def network() -> nn.Module:
    """Return the network, always the same."""
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1))


def new_scaler(device: str) -> torch.amp.GradScaler:
    """Return a scaler that grows soon."""
    return torch.amp.GradScaler(device, init_scale=2.0**10, growth_interval=3)


def precision_of(name: str, device: str) -> Any:
    """Return what the trainer is given: a name, or the object with which float16 works on a CPU too."""
    return MixedPrecision(name, device, new_scaler(device)) if name == "16-mixed" else name


def optimizer_of(form: str, parameters: Any, fused: bool = False) -> torch.optim.Optimizer:
    """Return the optimizer of a form."""
    if form == "LBFGS":
        return torch.optim.LBFGS(parameters, lr=0.05, max_iter=3)
    if fused:
        return torch.optim.AdamW(parameters, lr=0.01, fused=True)
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


class ByHand:
    """Loop as one writes it with torch alone.

    Args:
        name: The precision.
        form: One of `FORMS`.
        device: The device.
        planted: Batches with an infinite input.
        fused: Whether the optimizer is a fused one.
    """

    def __init__(self, name: str, form: str, device: str, planted: tuple[int, ...] = (), fused: bool = False) -> None:
        self.dtype = TRUE.get(name, torch.float32)
        self.net = network().to(device, self.dtype)
        self.optimizer = optimizer_of(form, self.net.parameters(), fused)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, 0.9)
        self.scaler = new_scaler(device) if name == "16-mixed" else None
        self.name, self.form, self.device, self.batches = name, form, device, batches(planted)
        self.steps, self.scales = 0, list[float]()

    def context(self) -> AbstractContextManager[Any]:
        """Return what each forward pass runs in."""
        return torch.autocast(self.device, MIXED[self.name]) if self.name in MIXED else nullcontext()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch."""
        x, y = x.to(self.device, self.dtype), y.to(self.device, self.dtype)
        with self.context():
            return nn.functional.mse_loss(self.net(x), y)

    def backward(self, loss: Tensor) -> None:
        """Run the backward pass."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def update(self) -> None:
        """Unscale, clip, and step; count and schedule what was not skipped."""
        scaler, parameters = self.scaler, list(self.net.parameters())
        if scaler is not None and self.form in ("norm", "value"):
            scaler.unscale_(self.optimizer)
        if self.form == "norm":
            nn.utils.clip_grad_norm_(parameters, CLIP)
        elif self.form == "value":
            nn.utils.clip_grad_value_(parameters, CLIP)
        finite = all(bool(p.grad.isfinite().all()) for p in parameters if p.grad is not None)
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)
            scaler.update()
            self.scales.append(scaler.get_scale())
        if scaler is None or finite:
            self.steps += 1
            self.schedule.step()

    def train(self, epochs: int = EPOCHS) -> ByHand:
        """Train and return itself."""
        window = 2 if self.form == "accumulate" else 1
        for _ in range(epochs):
            for i, (x, y) in enumerate(self.batches):
                if self.form == "LBFGS":
                    self.optimizer.step(lambda x=x, y=y: self.evaluate(x, y))
                    self.schedule.step()
                    continue
                length = min(window, BATCHES - i // window * window)
                if i % window == 0:
                    self.optimizer.zero_grad()
                loss = self.loss(x, y)
                self.backward(loss / length if length > 1 else loss)
                if i % window == length - 1:
                    self.update()
        return self

    def evaluate(self, x: Tensor, y: Tensor) -> Tensor:
        """Compute loss and gradients anew, for LBFGS."""
        self.optimizer.zero_grad()
        loss = self.loss(x, y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


class Net(LightningModule):
    """The same network as a module.

    Args:
        form: One of `FORMS`.
        fused: Whether the optimizer is a fused one.
    """

    def __init__(self, form: str = "plain", fused: bool = False) -> None:
        super().__init__()
        self.net = network()
        self.form, self.fused = form, fused
        self.automatic_optimization = form != "manual"

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss; step by itself in the manual form."""
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        if self.form == "manual":
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            before = [p.tolist() for p in self.net.parameters()]
            optimizer.step()
            if [p.tolist() for p in self.net.parameters()] != before:  # whether it was skipped shows in the weights
                self.lr_schedulers().step()
        return loss

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule by steps."""
        optimizer = optimizer_of(self.form, self.parameters(), self.fused)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        if self.form == "manual":
            return [optimizer], [schedule]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OwnStep(Net):
    """The module with an overridden optimizer_step, for the closure form."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
        """Step as the default does."""
        optimizer.step(closure=closure)


def by_trainer(
    name: str,
    form: str,
    device: str,
    planted: tuple[int, ...] = (),
    fused: bool = False,
    module: Callable[..., Net] = Net,
    ckpt_path: Any = None,
    backend: str = "eager",
    **flags: Any,
) -> tuple[Trainer, Net]:
    """Train by the trainer; the arguments are those of `ByHand`, and the backend that of the compiled form."""
    module = OwnStep if form == "closure" else module
    net = module(form, fused)
    if form in ("norm", "value"):
        flags |= {"gradient_clip_val": CLIP, "gradient_clip_algorithm": form}
    if form == "accumulate":
        flags["accumulate_grad_batches"] = 2
    accelerator = "cpu" if device == "cpu" else "gpu"
    given = {"precision": precision_of(name, device), "accelerator": accelerator, "devices": 1}
    flags = {**FLAGS, **given, **flags}
    trainer = Trainer(**flags)
    model = torch.compile(net, backend=backend) if form == "compiled" else net
    trainer.fit(model, loader(planted), ckpt_path=ckpt_path)  # type: ignore[arg-type]
    return trainer, net


def same_weights(ours: nn.Module, theirs: nn.Module, tolerance: float = 0.0) -> None:
    """Compare the weights of two networks, to the bit unless there is a tolerance; nan equals nan."""
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert p.dtype == q.dtype, name
        torch.testing.assert_close(p.cpu(), q.cpu(), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


def equals_the_loop(name: str, form: str, device: str, tolerance: float = 0.0, backend: str = "eager") -> None:
    """Train by hand and by the trainer, and compare weights, scale, steps and learning rate."""
    hand = ByHand(name, form, device).train()
    trainer, net = by_trainer(name, form, device, backend=backend)
    same_weights(net.net, hand.net, tolerance)
    assert all(bool(p.isfinite().all()) for p in net.net.parameters())
    assert trainer.optimizers[0].param_groups[0]["lr"] == hand.optimizer.param_groups[0]["lr"]
    if hand.scaler is not None:
        assert trainer.global_step == hand.steps
        assert trainer.scaler.state_dict() == hand.scaler.state_dict()


def skips_as_torch(form: str, device: str, planted: tuple[int, ...], fused: bool = False) -> None:
    """Compare weights, scales, counted steps and learning rate where some batches overflow."""
    hand = ByHand("16-mixed", form, device, planted, fused).train()
    trainer, net = by_trainer("16-mixed", form, device, planted, fused)
    same_weights(net.net, hand.net)
    assert trainer.scaler.state_dict() == hand.scaler.state_dict()  # type: ignore[union-attr]
    assert trainer.global_step == hand.steps < len(hand.scales)
    assert trainer.optimizers[0].param_groups[0]["lr"] == hand.optimizer.param_groups[0]["lr"]


def resumes_to_the_bit(device: str, folder: Any, planted: tuple[int, ...] = (2,), fused: bool = False) -> None:
    """Save in mid-epoch, go on from the file in a new trainer, and compare with the run that went on."""
    path = folder / "half.ckpt"

    class Saving(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 1:
                self.trainer.request_checkpoint(path)

    flags = {"default_root_dir": folder, "max_epochs": 1}
    whole, net = by_trainer("16-mixed", "plain", device, planted, fused, Saving, **flags)
    again, resumed = by_trainer("16-mixed", "plain", device, planted, fused, Net, **flags, ckpt_path=path)
    saved = load_checkpoint(path)["precision"]["16-mixed"]
    assert saved["_growth_tracker"] == 2
    assert again.scaler.state_dict() == whole.scaler.state_dict() != saved  # type: ignore[union-attr]
    assert again.global_step == whole.global_step == BATCHES - len(planted)
    same_weights(resumed.net, net.net)
