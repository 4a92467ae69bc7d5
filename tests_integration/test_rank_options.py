"""What the trainer's users see of the strategy's options on real ranks: errors that name what is wrong, and files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # here, and not in each forked rank: it takes a second
from rank_cases import QUIET, Net, Normed, samples
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule, Trainer
from lt_interface import ConfigError, MisconfigurationException, RankFailedError
from lt_interface.testing.ranks import run_ranks

SECONDS = 200.0


def pair(strategy: Any = "ddp", **flags: Any) -> Trainer:
    """Return a quiet trainer of one of two ranks."""
    return Trainer(**{**QUIET, "devices": 2, "strategy": strategy, "max_epochs": 1, **flags})


def errors_of(module: Any, **flags: Any) -> list[tuple[str, str]]:
    """Return kind and text of the error that each rank ends with."""

    def job(rank: int) -> tuple[str, str]:
        warnings.simplefilter("ignore")
        try:
            pair(**flags).fit(module(rank), DataLoader(samples(32), 4))
        except Exception as error:
            return type(error).__name__, str(error)
        return "", ""

    return run_ranks(job, timeout=SECONDS)


class Part(Net):
    """Network whose loss leaves out the last layers on some ranks.

    Args:
        on: The ranks.
    """

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.leaves_out = on

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.leaves_out and batch_idx == 1:
            return self.first(batch[0]).square().mean()
        return self.loss(batch)


def test_unused_parameters_are_named_on_all_ranks() -> None:
    """A loss that leaves parameters out ends every rank at that step, with the names and the flag that helps."""
    for kind, text in errors_of(lambda rank: Part(True)):
        assert kind == MisconfigurationException.__name__
        assert "no gradient for middle.weight, middle.bias, last.weight, last.bias" in text
        assert 'strategy="ddp_find_unused_parameters_true"' in text
    assert errors_of(lambda rank: Part(True), strategy="ddp_find_unused_parameters_true") == [("", "")] * 2


def test_parameters_unused_on_one_rank_end_the_others() -> None:
    """Where one rank alone leaves parameters out it is named, and the other one, which waits for them, ends by that."""
    first, second = errors_of(lambda rank: Part(rank == 1))
    assert second[0] == MisconfigurationException.__name__
    assert "on rank 1" in second[1]
    assert first[0] == RankFailedError.__name__
    assert "no gradient for middle.weight" in first[1]


class Reentrant(Net):
    """Network whose backward pass runs another one, in which torch sees no parameters beforehand."""

    def forward(self, x: Any) -> Any:
        hidden = torch.tanh(self.first(x))
        return self.last(checkpoint(lambda y: torch.tanh(self.middle(y)), hidden, use_reentrant=True))


def test_an_error_of_torch_in_every_backward_pass_ends_all() -> None:
    """An error that torch raises on all ranks at once in their backward passes ends each of them, with its own text."""
    for kind, text in errors_of(lambda rank: Reentrant(), strategy="ddp_find_unused_parameters_true"):
        assert kind == "RuntimeError"
        assert "mark a variable ready only once" in text
    assert errors_of(lambda rank: Reentrant()) == [("", "")] * 2


class Skips(Normed):
    """Network with batch norm that skips a batch on some ranks.

    Args:
        on: Whether it does.
    """

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.skips = on

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if self.skips and batch_idx == 1 else self.loss(batch)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_a_skipped_batch_under_shared_statistics_is_an_error(accumulate: int) -> None:
    """A rank that skips a batch would leave the others waiting in their batch norm: an error says so, on all ranks."""
    flags = {"sync_batchnorm": True, "accumulate_grad_batches": accumulate}
    first, second = errors_of(lambda rank: Skips(rank == 1), **flags)
    assert second[0] == MisconfigurationException.__name__
    assert "every rank must return a loss" in second[1]
    assert first[0] == RankFailedError.__name__
    assert errors_of(lambda rank: Skips(rank == 1), accumulate_grad_batches=accumulate) == [("", "")] * 2


class Watch(Callback):
    """Record of the classes of layers in each hook."""

    def __init__(self) -> None:
        self.seen: dict[str, bool] = {}

    def _look(self, where: str, module: Any) -> None:
        self.seen[where] = type(module.norm) is nn.BatchNorm1d

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._look("setup", pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._look("batch", pl_module)
        assert isinstance(pl_module.norm, nn.BatchNorm1d)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._look("fit end", pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._look("teardown", pl_module)


class Validated(Normed):
    """Network with batch norm that logs its loss on validation data."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])


def test_files_and_layers_are_as_without_shared_statistics(tmp_path: Path) -> None:
    """Checkpoints hold the same names, uneven validation is exact, and layers are the user's own before and after."""

    def job(rank: int) -> list[Any]:
        warnings.simplefilter("ignore")
        found = []
        for synced in (False, True):
            watch, module = Watch(), Validated()
            trainer = pair(sync_batchnorm=synced, callbacks=[watch], max_epochs=2)
            trainer.fit(module, DataLoader(samples(32), 4), DataLoader(samples(13), 4))
            assert watch.seen == {"setup": True, "batch": not synced, "fit end": True, "teardown": True}
            path = tmp_path / f"{synced}.ckpt"
            trainer.save_checkpoint(path)
            (measured,) = trainer.validate(module, DataLoader(samples(13), 4), verbose=False)
            assert measured["val_loss"] == pytest.approx(float(trainer.callback_metrics["val_loss"]))
            with torch.no_grad():
                module.eval()
                x, y = samples(13).tensors
                assert measured["val_loss"] == pytest.approx(float(module.loss([x, y])), rel=1e-5)
            loaded = Validated.load_from_checkpoint(path)
            assert all(
                a.equal(b) for a, b in zip(loaded.state_dict().values(), module.state_dict().values(), strict=True)
            )
            found.append(list(module.state_dict()))
        return found

    for without, shared in run_ranks(job, timeout=SECONDS):
        assert without == shared


def test_layers_are_the_users_own_after_an_error() -> None:
    """A fit that fails gives the batch norm layers back, and the same module trains again."""

    class Fails(Normed):
        fails = True

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.fails and batch_idx == 1:
                raise ValueError("as planned")
            return self.loss(batch)

    def job(rank: int) -> None:
        warnings.simplefilter("ignore")
        module = Fails()
        with pytest.raises(ValueError, match="as planned"):
            pair(sync_batchnorm=True).fit(module, DataLoader(samples(32), 4))
        assert type(module.norm) is nn.BatchNorm1d
        module.fails = False
        pair(sync_batchnorm=True).fit(module, DataLoader(samples(32), 4))
        assert type(module.norm) is nn.BatchNorm1d

    run_ranks(job, timeout=SECONDS)


def test_problems_of_the_strategy_come_before_anything_starts() -> None:
    """A backend that does not fit and a window over a static graph are errors of the call, in the parent process."""

    class Never(LightningModule):
        def setup(self, stage: str) -> None:
            raise AssertionError("it started")

    with pytest.raises(ConfigError, match="nccl exchanges between cards"):
        pair(DDPStrategy(process_group_backend="nccl", start_method="fork"))
    trainer = pair(DDPStrategy(static_graph=True, start_method="fork"), accumulate_grad_batches=2)
    with pytest.raises(ConfigError, match=r"static_graph=True.*Leave static_graph out"):
        trainer.fit(Never(), DataLoader(samples(8), 4))


def test_a_strategy_with_options_is_used_twice() -> None:
    """A strategy given as an object trains with its hook and backend, in a second fit too."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    def job(rank: int) -> list[Any]:
        warnings.simplefilter("ignore")
        strategy = DDPStrategy(
            ddp_comm_hook=fp16_compress_hook, process_group_backend="gloo", gradient_as_bucket_view=True
        )
        trainer, module = pair(strategy), Net()
        trainer.fit(module, DataLoader(samples(32), 4))
        trainer.max_epochs = 2
        trainer.fit(module, DataLoader(samples(32), 4))
        assert trainer.global_step == 8
        return [p.tolist() for p in module.parameters()]

    first, second = run_ranks(job, timeout=SECONDS)
    assert first == second
