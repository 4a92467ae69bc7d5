"""Average, restore, freeze and prune on two ranks: the weights of one process, the same on both, resumed to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, Trainer
from lt_core.callbacks import (
    BaseFinetuning,
    EMAWeightAveraging,
    ModelPruning,
    RestoreBest,
    StochasticWeightAveraging,
)
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job


class Layers(BaseFinetuning):
    """Callback that trains the last layer, and from epoch 1 on the first one too."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.layers[:2], train_bn=False)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.layers[:2], optimizer, lr=0.01)


class Cut(Callback):
    """Callback that saves after some steps, and stops there."""

    def __init__(self, at: int, path: Path) -> None:
        self.at, self.path = at, path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.at:
            trainer.request_checkpoint(self.path)
            trainer.should_stop = True


KINDS: dict[str, Callable[[], Any]] = {
    "average": lambda: EMAWeightAveraging(decay=0.7),
    "last epochs": lambda: StochasticWeightAveraging(0.02, 2, annealing_epochs=1),
    "best": lambda: RestoreBest("val_loss", "max", verbose=False),
    "layers": Layers,
    "pruned": lambda: ModelPruning("random_unstructured", amount=0.3, resample_parameters=True),
}


def trained(rank: int, size: int, folder: Path, *callbacks: Any, **how: Any) -> dict[str, Any]:
    """Return the weights after a fit of 3 epochs of 5 batches."""
    job = Job(epochs=3, buffers=isinstance(callbacks[0], StochasticWeightAveraging))
    strategy = {"strategy": DDPStrategy()} if size > 1 else {}
    flags = {"callbacks": list(callbacks), "default_root_dir": folder, "limit_val_batches": 1, **strategy}
    trainer, data, net = job.trainer(size, **flags), job.data(rank, size), job.network()
    net.configure_optimizers = lambda: torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=0.02)
    torch.manual_seed(rank)  # what a rank draws by itself
    trainer.fit(net, data, data, **how)
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_end_with_the_weights_of_one_process(kind: str, tmp_path: Path) -> None:
    """Both ranks have the same weights, those of one process, and again after a break inside an epoch."""
    make = KINDS[kind]

    def job(rank: int) -> Any:
        whole = trained(rank, 2, tmp_path, make())
        trained(rank, 2, tmp_path, make(), Cut(8, tmp_path / "a.ckpt"))
        again = trained(rank, 2, tmp_path, make(), ckpt_path=tmp_path / "a.ckpt")
        return whole, [name for name in whole if not torch.equal(whole[name], again[name])]

    Job().network().configure_optimizers()  # what ranks need is imported once, before they are forked
    (first, lost), (second, others) = run_ranks(job, timeout=120.0)
    assert (lost, others) == ([], [])
    alone = trained(0, 1, tmp_path, make())
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
        if kind not in ("last epochs", "pruned"):  # whose norms see the batches of each rank, and whose seeds differ
            torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)


def test_what_ranks_averaged_goes_on_in_a_file_of_the_launching_process(tmp_path: Path) -> None:
    """After a launched fit the module has the average, and a file that is saved then resumes as one of the ranks."""
    job = Job(epochs=3)

    def fit(epochs: int, path: Path | None = None) -> Any:
        flags: dict[str, Any] = dict.fromkeys(["logger", "enable_progress_bar", "enable_model_summary"], False)
        flags |= {"callbacks": [StochasticWeightAveraging(0.02, 2, annealing_epochs=1)], "limit_val_batches": 0}
        flags |= {"strategy": "ddp_fork", "accelerator": "cpu", "devices": 2, "enable_checkpointing": False}
        trainer, net = Trainer(max_epochs=epochs, default_root_dir=tmp_path, **flags), job.network()
        trainer.fit(net, job.data(0, 1), ckpt_path=path)
        return trainer, net

    job.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    _, whole = fit(3)
    trainer, net = fit(2)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    _, again = fit(3, tmp_path / "a.ckpt")
    assert not torch.equal(net.layers[2].bias, whole.layers[2].bias)
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
