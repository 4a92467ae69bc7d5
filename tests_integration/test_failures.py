"""Let one rank of two fail anywhere: it ends by its own error, the other soon after by one that names it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback, LightningModule
from lt_core.callbacks import ModelCheckpoint
from lt_interface import RankFailedError
from lt_interface.testing.ranks import free_port, run_ranks
from lt_interface.testing.training import Job

JOB = Job(batches=6, epochs=2)
SECONDS = 5.0


class Net(LightningModule):
    """Linear module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return a loss that depends on every sample."""
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log a value that all ranks have part in."""
        self.log("val_loss", self.layer(batch[0]).square().mean(), sync_dist=True)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the outputs."""
        return self.layer(batch[0])

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        """Return plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader() -> DataLoader[Any]:
    """Return a loader of six batches, three for each of two ranks."""
    return DataLoader(TensorDataset(torch.arange(96.0).reshape(24, 4) / 96), batch_size=4)


def trainer_in(folder: Path, *callbacks: Any, size: int = 2, **flags: Any) -> Any:
    """Return a quiet trainer of several ranks."""
    flags = {"enable_checkpointing": True, "num_sanity_val_steps": 1, "use_distributed_sampler": True, **flags}
    return JOB.trainer(size, strategy=DDPStrategy(), default_root_dir=folder, callbacks=list(callbacks), **flags)


def on_ranks(job: Any, size: int) -> list[Any]:
    JOB.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, size, timeout=30.0)


def on_two(job: Any) -> list[Any]:
    return on_ranks(job, 2)


def outcome(call: Any) -> tuple[str, str, float]:
    """Return the type and the text of what a call raised, and how many seconds it took."""
    begun = time.monotonic()
    try:
        with warnings.catch_warnings():  # as outside of tests, a warning ends nothing
            warnings.simplefilter("ignore")
            call()
    except BaseException as error:
        return type(error).__name__, str(error), time.monotonic() - begun
    return "", "", time.monotonic() - begun


def failing(kind: type, hook: str, when: Any) -> type:
    """Return a class whose hook raises where ``when`` is true, and is the base's own where not."""

    def raising(self: Any, *args: Any) -> Any:
        if when():
            raise ValueError(f"no {hook} here")
        return getattr(super(made, self), hook)(*args)

    raising.__code__ = raising.__code__.replace(co_name=hook)  # as if it were written in the class
    made = type("Failing", (kind,), {hook: raising})
    return made


def check(outcomes: list[tuple[str, str, float]], who: int, hook: str) -> None:
    """Check that one rank raised its own error, and the other one that names rank, place and error."""
    (own, _, _), (other, text, seconds) = outcomes[who], outcomes[1 - who]
    assert own == "ValueError"
    assert other == "RankFailedError", text
    assert f"in {hook}: it failed" in text
    assert re.search(rf"rank {who}, (fit|validate|test|predict), step \d+, in ", text)
    assert f"ValueError: no {hook} here" in text
    assert seconds < SECONDS


MODULE_HOOKS = [
    *("setup", "configure_callbacks", "configure_model", "configure_optimizers", "on_fit_start", "on_train_start"),
    *("validation_step", "on_validation_start", "on_validation_epoch_end", "on_train_epoch_end", "on_train_end"),
    *("on_fit_end", "teardown", "on_save_checkpoint", "on_train_batch_start", "training_step", "on_train_batch_end"),
]


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("hook", MODULE_HOOKS)
def test_an_error_of_one_rank_in_any_hook_ends_both(tmp_path: Path, hook: str, who: int) -> None:
    """The rank whose hook raises ends by that error, and the other by one that names it, though its process lives."""

    def job(rank: int) -> Any:
        module = failing(Net, hook, lambda: rank == who)()
        return outcome(lambda: trainer_in(tmp_path).fit(module, loader(), loader()))

    check(on_two(job), who, hook)


def test_an_error_in_prepare_data_ends_both(tmp_path: Path) -> None:
    """prepare_data runs on rank 0 alone: what it raises there ends the other rank, too."""

    def job(rank: int) -> Any:
        module = failing(Net, "prepare_data", lambda: rank == 0)()
        return outcome(lambda: trainer_in(tmp_path).fit(module, loader(), loader()))

    check(on_two(job), 0, "prepare_data")


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("late", [False, True])
def test_an_error_in_a_callbacks_state_ends_both(tmp_path: Path, who: int, late: bool) -> None:
    """A callback whose state_dict raises on one rank ends both, before the first batch or in the midst of a save."""

    def job(rank: int) -> Any:
        trainer = trainer_in(tmp_path, ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=2))
        kind = failing(Callback, "state_dict", lambda: rank == who and (not late or trainer.global_step > 0))
        trainer.callbacks.append(kind())
        return outcome(lambda: trainer.fit(Net(), loader(), loader()))

    check(on_two(job), who, "state_dict")


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    ("stage", "hook"),
    [
        *(("validate", "validation_step"), ("test", "on_test_start"), ("test", "on_test_epoch_end"), ("test", "setup")),
        *(("predict", "predict_step"), ("predict", "on_predict_end"), ("predict", "teardown")),
    ],
)
def test_an_error_of_one_rank_outside_of_a_fit_ends_both(tmp_path: Path, stage: str, hook: str, who: int) -> None:
    """Validation, test and prediction end on both ranks where a hook or a step raises on one."""

    def job(rank: int) -> Any:
        module = failing(Net, hook, lambda: rank == who)()
        return outcome(lambda: getattr(trainer_in(tmp_path), stage)(module, loader()))

    check(on_two(job), who, hook)


@pytest.mark.parametrize("hook", ["setup", "training_step", "on_validation_epoch_end"])
def test_one_of_three_ranks_ends_all(tmp_path: Path, hook: str) -> None:
    """Of three ranks the one that fails ends both others, by an error that names it."""

    def job(rank: int) -> Any:
        module = failing(Net, hook, lambda: rank == 1)()
        return outcome(lambda: trainer_in(tmp_path, size=3).fit(module, loader(), loader()))

    first, second, third = on_ranks(job, 3)
    check([first, second], 1, hook)
    check([third, second], 1, hook)


def test_each_rank_raises_its_own_error(tmp_path: Path) -> None:
    """Where every rank fails by itself, each raises what it has found."""

    def job(rank: int) -> Any:
        module = failing(Net, "setup", lambda: True)()
        return outcome(lambda: trainer_in(tmp_path).fit(module, loader(), loader()))

    assert [kind for kind, _, _ in on_two(job)] == ["ValueError", "ValueError"]


def test_ranks_train_again_after_a_failure(tmp_path: Path) -> None:
    """Once both ranks have ended by an error, the next fit of the same processes runs, twice in a row."""

    def job(rank: int) -> Any:
        def fit(kind: type[Any]) -> Any:
            trainer = trainer_in(tmp_path)
            return outcome(lambda: trainer.fit(kind(), loader(), loader()))[0] or trainer.global_step

        early, late = (failing(Net, hook, lambda: rank == 1) for hook in ("setup", "training_step"))
        return [fit(kind) for kind in (early, Net, late, Net)]

    assert on_two(job) == [["RankFailedError", 6] * 2, ["ValueError", 6] * 2]


def test_an_exchange_after_a_failure_is_an_error(tmp_path: Path) -> None:
    """A hook that meets the other ranks after an error does not wait for them: it gets an error at once."""

    class Meeting(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            with pytest.raises(RankFailedError, match=r"rank 1, fit, step \d+, in training_step: it failed"):
                trainer.strategy.barrier("after the error")
            with pytest.raises(RankFailedError, match=r"rank 1, fit, step \d+, in training_step: it failed"):
                trainer.strategy.broadcast("anything")
            met.append(True)

    met: list[bool] = []

    def job(rank: int) -> Any:
        module = failing(Net, "training_step", lambda: rank == 1)()
        return *outcome(lambda: trainer_in(tmp_path, Meeting()).fit(module, loader())), met

    found = on_two(job)
    assert [met for *_, met in found] == [[True], [True]]
    check([each[:3] for each in found], 1, "training_step")


def test_the_other_ranks_end_while_the_first_cleans_up(tmp_path: Path) -> None:
    """A rank that takes its time in on_exception keeps nobody waiting who meets it in an exchange of the trainer."""

    class Slow(Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            if trainer.global_rank == 1:
                time.sleep(SECONDS)

    def job(rank: int) -> Any:
        module = failing(Net, "on_validation_start", lambda: rank == 1)()
        begun = time.monotonic()
        trainer = trainer_in(tmp_path, Slow())
        ended: list[float] = []
        handled = type("Handled", (Callback,), {"on_exception": lambda *args: ended.append(time.monotonic() - begun)})
        trainer.callbacks.insert(0, handled())
        return *outcome(lambda: trainer.fit(module, loader(), loader())), ended

    (kind, _, _, ended), _ = on_two(job)
    assert kind == "RankFailedError"
    assert ended[0] < SECONDS / 2


def own(count: int) -> DataLoader[Any]:
    """Return a loader of so many batches, for a rank that takes it as it is."""
    return DataLoader(TensorDataset(torch.ones(4 * count, 4)), batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("counts", [(6, 4), (4, 6)])
def test_training_loaders_of_other_lengths_are_refused(
    tmp_path: Path, counts: tuple[int, int], accumulate: int
) -> None:
    """Sized training loaders of other lengths by rank are one error on both ranks, before the epoch's first batch."""

    def job(rank: int) -> Any:
        trainer = trainer_in(tmp_path, accumulate_grad_batches=accumulate, use_distributed_sampler=False)
        return *outcome(lambda: trainer.fit(Net(), own(counts[rank]))), trainer.global_step

    for kind, text, _, steps in on_two(job):
        assert kind == "ConfigError"
        assert "train_dataloader: every rank must have equally many batches." in text
        assert f"Got {counts[0]} on rank 0, {counts[1]} on rank 1." in text
        assert steps == 0


def test_what_a_limit_makes_alike_is_trained(tmp_path: Path) -> None:
    """Loaders of other lengths that limit_train_batches cuts to equal ones train."""

    def job(rank: int) -> Any:
        trainer = trainer_in(tmp_path, limit_train_batches=3, use_distributed_sampler=False)
        return outcome(lambda: trainer.fit(Net(), own(6 - rank)))[0] or trainer.global_step

    assert on_two(job) == [6, 6]


@pytest.mark.parametrize("stage", ["train", "val"])
@pytest.mark.parametrize("who", [0, 1])
def test_an_empty_loader_of_one_rank_ends_both(tmp_path: Path, stage: str, who: int) -> None:
    """A loader without a batch on one rank is an error on both, which says where it is."""

    def job(rank: int) -> Any:
        data: dict[str, Any] = {"train": own(3), "val": own(3)}
        if rank == who:
            data[stage] = own(0)
        return outcome(lambda: trainer_in(tmp_path).fit(Net(), data["train"], data["val"]))

    found = on_two(job)
    assert "a loader must have at least one batch" in found[who][1]
    assert found[who][0] == "ConfigError"
    assert found[1 - who][0] == "RankFailedError"
    assert f"rank {who}, fit, step 0: " in found[1 - who][1]
    assert f"{stage}_dataloader: a loader must have at least one batch" in found[1 - who][1]


@pytest.mark.parametrize("sanity", [0, 1])
@pytest.mark.parametrize("who", [0, 1])
def test_a_validation_loader_on_one_rank_only_is_refused(tmp_path: Path, who: int, sanity: int) -> None:
    """A validation loader that only one rank has is one error on both."""

    def job(rank: int) -> Any:
        data = own(3) if rank == who else None
        return outcome(lambda: trainer_in(tmp_path, num_sanity_val_steps=sanity).fit(Net(), own(3), data))

    for kind, text, _ in on_two(job):
        assert kind == "ConfigError"
        assert f"val_dataloader: every rank must have equally many validations. Got {1 - who} on rank 0" in text


@pytest.mark.parametrize("stage", ["validate", "predict"])
def test_other_numbers_of_loaders_are_refused(tmp_path: Path, stage: str) -> None:
    """Two evaluation loaders on one rank and one on the other are one error on both."""

    def job(rank: int) -> Any:
        module = Net()
        module.validation_step = lambda batch, batch_idx, dataloader_idx=0: None
        module.predict_step = lambda batch, batch_idx, dataloader_idx=0: None
        return outcome(lambda: getattr(trainer_in(tmp_path), stage)(module, [own(3)] * (1 + rank)))

    for kind, text, _ in on_two(job):
        assert kind == "ConfigError"
        assert "every rank must have equally many loaders. Got 1 on rank 0, 2 on rank 1." in text


@pytest.mark.parametrize("who", [0, 1])
def test_a_refused_batch_ends_the_epoch_on_both(tmp_path: Path, who: int) -> None:
    """on_train_batch_start that returns -1 on one rank ends the epoch on both, before that batch's step."""

    def job(rank: int) -> Any:
        class Refusing(Net):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
                return -1 if rank == who and batch_idx == 2 else None

        trainer = trainer_in(tmp_path)
        return outcome(lambda: trainer.fit(Refusing(), loader(), loader()))[0] or trainer.global_step

    assert on_two(job) == [4, 4]


def test_a_refused_batch_closes_the_window_of_both(tmp_path: Path) -> None:
    """Two ranks step with the window that it leaves open, and have exchanged its gradients."""

    def train(size: int) -> list[float]:
        class Refusing(Net):
            def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
                return -1 if batch_idx == 2 else None

        module = Refusing()
        data = TensorDataset(torch.arange(96.0).reshape(24, 4) / 96)
        trainer = trainer_in(tmp_path, size=size, accumulate_grad_batches=3, enable_checkpointing=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(module, DataLoader(data, 4 // size))
        assert trainer.global_step == 2
        return [value for p in module.parameters() for value in p.flatten().tolist()]

    found = on_two(lambda rank: train(2))
    assert found[0] == found[1] == pytest.approx(train(1), abs=1e-6)


SCRIPT = """
import sys
from pathlib import Path
from test_failures import Net, failing, loader, trainer_in

trainer = trainer_in(Path(sys.argv[1]))
rank = int(sys.argv[2])
module = failing(Net, sys.argv[3], lambda: rank == 1)()
try:
    trainer.fit(module, loader(), loader())
except Exception as error:
    Path(sys.argv[1], f"rank{rank}").write_text(type(error).__name__)
"""


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["setup", "training_step", "on_train_batch_end"])
def test_processes_end_in_order_after_a_failure(tmp_path: Path, hook: str) -> None:
    """Scripts that catch the error of a failed run end by themselves: no exchange is left that an exit waits for."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    places = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path), str(rank), hook],
            env={**os.environ, **common, "PYTHONPATH": places, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        assert [rank.wait(150.0) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    assert [(tmp_path / f"rank{n}").read_text(encoding="utf-8") for n in range(2)] == ["RankFailedError", "ValueError"]
