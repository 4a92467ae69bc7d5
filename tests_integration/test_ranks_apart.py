"""Let one rank do what needs all: each rank gets an error that names the ranks and what they were about to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lt_accel.group
from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping
from lt_interface import ConfigError
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher

SECONDS = 90.0


class Net(LightningModule):
    """Linear module with a metric object."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer, self.mean = nn.Linear(4, 1), torchmetrics.MeanMetric()

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        self.mean.update(batch[0].mean())
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val", self.layer(batch[0]).mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class At(Callback):
    """Callback that does something in one hook of chosen ranks."""

    def __init__(self, hook: str, ranks: tuple[int, ...], action: Callable[[Trainer, Net], Any]) -> None:
        self.ranks, self.action = ranks, action
        self.found: list[Any] = []
        self.__class__ = type("Acting", (At,), {hook: At.act})

    def act(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Do it."""
        if trainer.global_rank in self.ranks:
            self.found.append(self.action(trainer, pl_module))


def loader(n: int, size: int = 2) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(4.0 * n).reshape(n, 4) / 96), batch_size=size)


def fit(folder: Path, size: int, *callbacks: Callback, **flags: Any) -> Trainer:
    """Train for one epoch with a validation at its end."""
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    ranks = {"accelerator": "cpu", "devices": size, "strategy": DDPStrategy(), "launcher": ReferenceLauncher()}
    own = {"max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": folder, "callbacks": list(callbacks)}
    trainer = Trainer(**{**quiet, **ranks, **own, **flags})
    trainer.fit(Net(), loader(24), loader(8))
    return trainer


def failed(*args: Any) -> tuple[str, str]:
    """Return the class and the text of what a fit raises."""
    with pytest.raises(Exception) as caught:
        fit(*args)
    return type(caught.value).__name__, str(caught.value)


def on(size: int, job: Callable[[int], Any]) -> list[Any]:
    Net().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, size, timeout=SECONDS)


ACTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "all_gather": lambda trainer, net: net.all_gather(torch.ones(2)),
    "strategy.all_gather": lambda trainer, net: trainer.strategy.all_gather(torch.ones(2)),
    "reduce": lambda trainer, net: trainer.strategy.reduce(torch.ones(2)),
    "broadcast": lambda trainer, net: trainer.strategy.broadcast("name"),
    "decision": lambda trainer, net: trainer.strategy.reduce_boolean_decision(True),
    "barrier": lambda trainer, net: trainer.strategy.barrier("mine"),
    "save": lambda trainer, net: trainer.save_checkpoint(Path(trainer.default_root_dir, "alone.ckpt")),
    "compute": lambda trainer, net: net.mean.compute(),
}
WORDS = {
    "barrier": "barrier 'mine'",
    "save": "barrier 'trainer.save_checkpoint'",
    "compute": "barrier 'the compute() of a metric object'",
}


@pytest.mark.parametrize("near", [True, False], ids=["one machine", "several"])
@pytest.mark.parametrize("what", ACTIONS)
def test_an_exchange_of_one_rank_alone_is_an_error_that_names_the_ranks(
    tmp_path: Path, what: str, near: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever exchanges, called on rank 0 or 1 alone in a batch's hook, ends both ranks; the others went on."""
    if not near:  # flags over the network, as between machines
        monkeypatch.setattr(lt_accel.group, "shared_flags", lambda *args: None)

    def job(rank: int) -> Any:
        return [failed(tmp_path, 2, At("on_train_batch_end", (who,), ACTIONS[what])) for who in (0, 1)]

    first, second = on(2, job)
    for who, outcomes in enumerate(zip(first, second, strict=True)):
        kind, text = outcomes[who]
        assert kind == "MisconfigurationException"
        assert "all ranks must come to it" in text
        assert f"rank {who} in {WORDS.get(what, '')}" in text
        assert f"rank {1 - who} gone on without it" in text
        kind, text = outcomes[1 - who]
        assert kind in ("RankFailedError", "MisconfigurationException")
        assert f"rank {who}" in text
        assert not list(tmp_path.glob("*.ckpt"))


HOOKS = [
    "setup", "on_fit_start", "on_train_start", "on_train_epoch_start", "on_before_backward", "on_before_optimizer_step",
    "on_validation_start", "on_validation_batch_end", "on_validation_epoch_end", "on_train_epoch_end", "on_train_end",
    "on_fit_end", "teardown",
]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_in_every_hook_ranks_that_are_apart_end_together(tmp_path: Path, hook: str) -> None:
    """A collective of one rank alone never hangs, wherever it is called; what all call works there."""

    def job(rank: int) -> Any:
        gather = ACTIONS["all_gather"]
        together = At(hook, (0, 1), gather)
        fit(tmp_path, 2, together)
        return together.found[0].shape[0], failed(tmp_path, 2, At(hook, (0,), gather))

    for rank, (gathered, (kind, text)) in enumerate(on(2, job)):
        assert gathered == 2
        assert kind == "MisconfigurationException" or (rank == 1 and kind == "RankFailedError")
        assert "rank 0 in all_gather" in text
        assert "all ranks must come to it" in text


def test_the_missing_one_of_several_is_named(tmp_path: Path) -> None:
    """Where three ranks of four exchange, the error names the one that does not, whichever it waits for."""

    def job(rank: int) -> Any:
        at = [At(hook, (0, 1, 3), ACTIONS["barrier"]) for hook in ("on_train_batch_end", "on_train_epoch_end")]
        return [failed(tmp_path, 4, each)[1] for each in at]

    for inside, at_end in on(4, job):
        assert "ranks 0, 1, 3 in barrier 'mine', rank 2 gone on without it" in inside
        assert "ranks 0, 1, 3 in barrier 'mine', rank 2 in all_reduce" in at_end


def test_tensors_of_other_sizes_are_refused(tmp_path: Path) -> None:
    """A gathering of other sizes on each rank, which would end the process, is an error that says them."""

    def job(rank: int) -> Any:
        uneven = At("on_train_start", (0, 1), lambda trainer, net: net.all_gather(torch.ones(2 + rank)))
        return failed(tmp_path, 2, uneven)

    for kind, text in on(2, job):
        assert kind == "MisconfigurationException"
        assert "rank 0 in all_gather of 8 uint8 by lt_core.module, rank 1 in all_gather of 12 uint8" in text


def test_the_next_run_of_ranks_that_were_apart_is_right(tmp_path: Path) -> None:
    """After such an error the same processes train together again."""

    def job(rank: int) -> Any:
        failed(tmp_path, 2, At("on_train_batch_end", (0,), ACTIONS["reduce"]))
        return fit(tmp_path, 2).global_step

    assert on(2, job) == [6, 6]


def test_metric_objects_are_the_users_own_again(tmp_path: Path) -> None:
    """After a run a metric object gathers by the function that it came with, its own one too."""

    def mine(tensor: Any, group: Any = None) -> Any:
        return [tensor]

    def job(rank: int) -> Any:
        inside: list[Any] = []
        at = At("on_train_start", (0, 1), lambda t, net: inside.append(net.mean.dist_sync_fn.__module__))
        net = fit(tmp_path, 2, at).lightning_module
        own = At("setup", (0, 1), lambda t, net: setattr(net.mean, "dist_sync_fn", mine))
        return inside, net.mean.dist_sync_fn, fit(tmp_path, 2, own).lightning_module.mean.dist_sync_fn is mine

    assert on(2, job) == 2 * [(["lt_accel.metric_states"], None, True)]


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_start"])
def test_what_one_rank_alone_freezes_is_named(tmp_path: Path, hook: str) -> None:
    """A parameter that rank 1 alone freezes, before the first batch or before any other, is named with the ranks."""

    def freeze(trainer: Any, net: Any) -> None:
        net.layer.bias.requires_grad_(False)

    for _, text in on(2, lambda rank: failed(tmp_path, 2, At(hook, (1,), freeze))):
        assert all(word in text for word in ("layer.bias", "rank 0", "rank 1"))
        assert "without looking at the rank" in text


def test_a_call_of_torch_by_one_rank_alone_is_placed(tmp_path: Path) -> None:
    """Where rank 1 alone calls torch's barrier, the error at the timeout says where both ranks are."""

    def job(rank: int) -> str:
        with pytest.raises(Exception, match="rank 1 in fit, step 1, in act") as caught:
            fit(
                tmp_path,
                2,
                At("on_train_batch_end", (1,), lambda trainer, net: dist.barrier()),
                strategy=DDPStrategy(timeout=timedelta(seconds=5)),
            )
        return str(caught.value)

    assert all("rank 0 in fit, step 1, in backward" in text for text in on(2, job))


def test_an_exit_of_one_rank_is_the_exit_of_all(tmp_path: Path) -> None:
    """Where rank 1 exits with a code of its own or is interrupted, rank 0 ends as it does."""

    def leave(rank: int, error: BaseException) -> str:
        with pytest.raises(type(error)) as caught:
            fit(tmp_path, 2, At("on_train_batch_end", (1,), lambda trainer, net: raises(error)))
        return repr(getattr(caught.value, "code", None))

    assert on(2, lambda rank: [leave(rank, SystemExit(7)), leave(rank, KeyboardInterrupt())]) == [["7", "None"]] * 2


def raises(error: BaseException) -> None:
    raise error


def test_what_an_epochs_end_logs_is_reduced_before_it_is_monitored(tmp_path: Path) -> None:
    """A value that on_train_epoch_end logs with sync_dist is all ranks' mean for who monitors it, and afterwards."""

    def job(rank: int) -> list[float]:
        stopping = EarlyStopping("end")
        log = At("on_train_epoch_end", (0, 1), lambda trainer, net: net.log("end", float(rank), sync_dist=True))
        trainer = fit(tmp_path, 2, log, stopping)
        return [float(stopping.best_score), float(trainer.callback_metrics["end"])]

    assert on(2, job) == [[0.5, 0.5]] * 2


def change(what: str, trainer: Any, net: Net) -> None:
    """Change, in a hook of one rank, what all ranks must have alike."""
    if what == "lr":
        net.optimizers().param_groups[0]["lr"] = 0.5
    elif what == "callbacks":
        trainer.callbacks.append(EarlyStopping("val"))
    else:
        setattr(trainer, what, 3)


DRIFTS = {
    "lr": "Net.optimizers: every rank must keep the same optimizers. Got optimizer 0, group 0, lr: 0.1 on rank 0, 0.5",
    "callbacks": "trainer.callbacks: every rank must have the same. Got none that saves or stops on rank 0, EarlyStop",
    "gradient_clip_val": "trainer.gradient_clip_val: every rank must have the same. Got None on rank 0, 3 on rank 1.",
    "max_epochs": "trainer.max_epochs: every rank must have the same. Got 1 on rank 0, 3 on rank 1.",
}


def test_what_drifts_on_one_rank_is_named_at_the_epochs_end(tmp_path: Path) -> None:
    """A rank's own learning rate, callback or flag ends all ranks with both values; their own weights are warned of."""

    def shift(trainer: Any, net: Net) -> None:
        with torch.no_grad():
            net.layer.weight.add_(1)

    def job(rank: int) -> Any:
        told = [failed(tmp_path, 2, At("on_train_start", (1,), partial(change, what))) for what in DRIFTS]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit(tmp_path, 2, At("on_train_start", (1,), shift))
        return told, [str(w.message) for w in caught if "same weights" in str(w.message)]

    (first, warned), (second, quiet) = on(2, job)
    assert first == second
    assert all(text.startswith(start) for (_, text), start in zip(first, DRIFTS.values(), strict=True)), first
    assert len(warned) == 1
    assert "Got layer.weight: mean " in warned[0]
    assert not quiet


def test_flags_that_one_rank_has_otherwise_are_named_before_anything_starts(tmp_path: Path) -> None:
    """Each flag that differs is one problem of one error, the same on all ranks, and no hook of the user's has run."""

    def job(rank: int) -> Any:
        seen = At("setup", (0, 1), lambda trainer, net: None)
        own: dict[str, Any] = {"max_steps": 3, "num_sanity_val_steps": 2, "precision": "bf16-true"} if rank else {}
        with pytest.raises(ConfigError) as caught:
            fit(tmp_path, 2, seen, **own)
        return str(caught.value), len(seen.found)

    first, second = on(2, job)
    assert first == second
    assert first[1] == 0
    assert "trainer.max_steps: every rank must have the same. Got -1 on rank 0, 3 on rank 1." in first[0]
    assert "trainer.num_sanity_val_steps" in first[0]
    assert "Trainer(precision)" in first[0]
