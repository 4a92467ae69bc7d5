"""Save and resume on two ranks whose engine writes its own folder, each rank its part, as DeepSpeed does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core.callbacks import ModelCheckpoint
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job


class _Parted:
    """Engine in front of another one; each rank keeps every second parameter and its optimizer state.

    Args:
        engine: The engine that trains.
        module: The module.
        rank: This rank.
        size: How many ranks there are.
    """

    def __init__(self, engine: Any, module: Any, rank: int, size: int) -> None:
        self._inner, self._module, self._rank, self._size = engine, module, rank, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def _parameters(self, rank: int) -> list[Any]:
        return list(self._module.named_parameters())[rank :: self._size]

    def save(self, path: str) -> None:
        if self._module.global_step == self._module.fails_at and self._rank == 1:
            raise OSError("the disk of this rank is full")
        states = self._inner.optimizers[0].state
        own = {name: (p.detach(), dict(states[p])) for name, p in self._parameters(self._rank)}
        torch.save(own, f"{path}/part-{self._rank}.pt")

    def load(self, path: str) -> None:
        for rank in range(self._size):
            saved = torch.load(f"{path}/part-{rank}.pt", weights_only=True)
            for name, parameter in self._parameters(rank):
                parameter.data.copy_(saved[name][0])
                for optimizer in self._inner.optimizers:
                    optimizer.state[parameter] = saved[name][1]


class _PartedStrategy(DDPStrategy):
    name = "parted"

    def engine(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return _Parted(super().engine(module, *args, **kwargs), module, self.world.rank, self.world.size)


def _train(rank: int, folder: Path, epochs: int, ckpt_path: Any = None, fails_at: int = -1) -> Any:
    """Train in a rank; return the weights, what was warned, and what the saver believes."""
    job = Job(epochs=epochs)
    net, saver = job.network(), ModelCheckpoint(dirpath=folder, filename="{epoch}", save_last=True)
    net.fails_at = fails_at
    flags = {"enable_checkpointing": True, "callbacks": [saver], "default_root_dir": folder}
    trainer = job.trainer(2, strategy=_PartedStrategy(), **flags)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(net, job.data(rank, 2), job.data(rank, 2)[:2], ckpt_path=ckpt_path)
    texts = [str(w.message) for w in found if "not written" in str(w.message)]
    return {n: v.tolist() for n, v in net.state_dict().items()}, texts, Path(saver.best_model_path).name


def _names(folder: Path) -> list[str]:
    visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return sorted(path.name.rpartition("-")[0] if ".engine-" in path.name else path.name for path in visible)


def test_ranks_resume_what_each_wrote(tmp_path: Path) -> None:
    """Both ranks fill one folder, ``"last"`` finds it, and the resumed run has the bits of an unbroken one."""
    whole = run_ranks(lambda rank: _train(rank, tmp_path / "whole", 3)[0])
    run_ranks(lambda rank: _train(rank, tmp_path / "parts", 1))
    for folder in (tmp_path / "parts").glob("*.engine-*"):
        assert sorted(path.name for path in folder.iterdir()) == ["part-0.pt", "part-1.pt"]
    resumed = run_ranks(lambda rank: _train(rank, tmp_path / "parts", 3, ckpt_path="last")[0])
    assert resumed == whole
    names = ["epoch=2.ckpt", "epoch=2.ckpt.engine", "last.ckpt", "last.ckpt.engine"]
    assert _names(tmp_path / "whole") == names
    # The file that the run was resumed from stays, as with any engine.
    assert set(names) <= set(_names(tmp_path / "parts"))


def test_one_ranks_failure_is_a_failed_save_on_all(tmp_path: Path) -> None:
    """Where rank 1 cannot write its part, no file appears, older ones stay, and both ranks train on together."""
    found = run_ranks(lambda rank: _train(rank, tmp_path, 2, fails_at=10))
    assert found[0][0] == found[1][0]
    assert [best for *_, best in found] == ["epoch=0.ckpt"] * 2
    assert all("the disk of this rank is full" in text for text in found[0][1])
    assert len(found[0][1]) == 2
    assert _names(tmp_path) == ["epoch=0.ckpt", "epoch=0.ckpt.engine", "last.ckpt", "last.ckpt.engine"]
