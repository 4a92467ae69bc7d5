"""Let one rank of two want something: both do the same at the same step, and nobody hangs."""

from __future__ import annotations

import multiprocessing
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import Callback
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.checkpoint import SafetensorsIO, load_checkpoint
from lt_interface import CheckpointError
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.training import Job

JOB = Job(batches=6, epochs=2)


class At(Callback):
    """Callback that does something on one rank, at one batch of the first epoch."""

    def __init__(self, rank: int, batch: int, action: Any) -> None:
        self.rank, self.batch, self.action = rank, batch, action

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and (trainer.current_epoch, batch_idx) == (0, self.batch):
            self.action(trainer)


def fit(rank: int, folder: Path, *callbacks: Any, module: Any = None, **flags: Any) -> Any:
    """Return the trainer after a fit of two ranks."""
    flags |= {
        "callbacks": list(callbacks),
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    trainer = JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=folder, **flags)
    data = JOB.data(rank, 2)
    trainer.fit(JOB.network() if module is None else module, data, data[:2])
    return trainer


def on_two(job: Any, timeout: float = 60.0) -> list[Any]:
    JOB.network().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=timeout)


@pytest.mark.parametrize("who", [0, 1])
def test_a_stop_of_one_rank_stops_both_one_step_later(tmp_path: Path, who: int) -> None:
    """should_stop set in a batch hook of one rank ends training on both, after the next batch."""

    def stop(trainer: Any) -> None:
        trainer.should_stop = True

    def job(rank: int) -> tuple[int, bool]:
        trainer = fit(rank, tmp_path, At(who, 2, stop))
        return trainer.global_step, trainer.should_stop

    assert on_two(job) == [(4, True)] * 2


def test_a_stop_at_the_last_batch_ends_with_the_epoch(tmp_path: Path) -> None:
    """A wish of an epoch's last batch is known before the epoch is closed: no batch of the next one runs."""

    def stop(trainer: Any) -> None:
        trainer.should_stop = True

    assert on_two(lambda rank: fit(rank, tmp_path, At(1, 5, stop)).global_step) == [6, 6]


@pytest.mark.parametrize(
    ("hook", "steps"),
    [("on_train_start", 0), ("on_train_epoch_start", 2), ("on_validation_end", 6), ("on_train_epoch_end", 6)],
)
def test_a_stop_in_any_hook_of_one_rank_stops_both(tmp_path: Path, hook: str, steps: int) -> None:
    """A stop that one rank asks for before training, at an epoch's ends or in validation is known to both in time."""

    def job(rank: int) -> int:
        def stop(self: Any, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.should_stop or rank == 1

        return fit(rank, tmp_path, type("Stopping", (Callback,), {hook: stop})()).global_step

    assert on_two(job) == [steps, steps]


def test_a_stop_in_a_validation_inside_an_epoch_is_settled_after_it(tmp_path: Path) -> None:
    """A stop that one rank asks for in a validation in mid-epoch ends training on both right after it."""

    def job(rank: int) -> int:
        def stop(self: Any, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.should_stop or rank == 1

        callback = type("Stopping", (Callback,), {"on_validation_end": stop})()
        return fit(rank, tmp_path, callback, val_check_interval=3).global_step

    assert on_two(job) == [3, 3]


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_to_one_rank_ends_both(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    """SIGTERM or SIGINT to one rank ends both after the same step, and the checkpoint of that moment is written."""

    def job(rank: int) -> tuple[int, bool]:
        steps: list[int] = []
        callbacks = [At(1, 2, lambda trainer: os.kill(os.getpid(), number)), Counting(steps)]
        keeper = ModelCheckpoint(dirpath=tmp_path, filename="{step}", save_on_exception=True, every_n_epochs=5)
        with pytest.raises(error):
            fit(rank, tmp_path, *callbacks, keeper)
        return len(steps), bool(list(tmp_path.glob("*.ckpt")))

    assert on_two(job) == [(4, True)] * 2
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["step=4.ckpt"]


class Counting(Callback):
    """Callback that notes each step."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append(trainer.global_step)


def test_a_save_that_one_rank_asks_for_is_made_by_both(tmp_path: Path) -> None:
    """request_checkpoint on one rank writes the file at the same step on both, and calls back where it was asked."""
    path = tmp_path / "asked.ckpt"

    def job(rank: int) -> list[str]:
        called: list[str] = []

        def ask(trainer: Any) -> None:
            trainer.request_checkpoint(path, saved=lambda: called.append(f"saved at {trainer.global_step}"))

        fit(rank, tmp_path, At(1, 2, ask))
        return called

    assert on_two(job) == [[], ["saved at 4"]]
    assert path.exists()


def test_a_save_that_fails_on_the_writing_rank_fails_on_both(tmp_path: Path) -> None:
    """A disk that refuses rank 0's file is a failed save on every rank, and training goes on."""
    path = tmp_path / "file" / "inside.ckpt"
    path.parent.write_text("not a folder")

    def job(rank: int) -> tuple[list[str], int]:
        called: list[str] = []

        def ask(trainer: Any) -> None:
            trainer.request_checkpoint(
                path, saved=lambda: called.append("saved"), failed=lambda e: called.append("failed")
            )

        with pytest.warns(UserWarning, match="not written, training goes on") if rank == 0 else nullcontext():
            trainer = fit(rank, tmp_path, At(0, 2, ask), At(1, 2, ask))
        return called, trainer.global_step

    assert on_two(job) == [(["failed"], 12)] * 2


@pytest.mark.filterwarnings("ignore:.*not written")
@pytest.mark.parametrize("save_last", [True, "link"])
def test_both_ranks_know_the_same_of_what_was_saved(tmp_path: Path, save_last: Any) -> None:
    """Whatever the disk refuses rank 0, a ModelCheckpoint says the same on both ranks."""

    class Full(SafetensorsIO):
        count = 0

        def write(self, prepared: Any, path: Any) -> None:
            self.count += 1
            if self.count in (2, 5):
                raise OSError(28, "No space left on device")
            super().write(prepared, path)

    def job(rank: int) -> list[Any]:
        saver = ModelCheckpoint(tmp_path, "{step}", "step", save_last=save_last, save_top_k=2, every_n_train_steps=2)
        fit(rank, tmp_path, saver, plugins=[Full()])
        return [{k: str(v) for k, v in saver.state_dict().items()}, saver.last_model_path, list(saver.best_k_models)]

    first, second = on_two(job)
    assert first == second
    assert {first[1], *first[2]} == {str(path) for path in tmp_path.glob("*.ckpt")}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_batch_of_one_rank_counts_as_zero(tmp_path: Path, accumulate: int) -> None:
    """training_step that returns None on one rank halves that batch's gradients; both go on with the same weights."""

    def job(rank: int) -> list[Any]:
        module = JOB.network()
        whole = module.training_step
        module.training_step = lambda batch, batch_idx: None if rank == batch_idx == 1 else whole(batch, batch_idx)
        module.validation_step = lambda batch, batch_idx: None
        trainer = fit(rank, tmp_path, module=module, accumulate_grad_batches=accumulate)
        return [trainer.global_step, *(p.tolist() for p in module.parameters())]

    first, second = on_two(job)
    assert first == second
    assert first[0] == 12 // accumulate
    assert all(torch.tensor(values).isfinite().all() for values in first[1:])


@pytest.mark.filterwarnings("ignore:self.log")
def test_a_monitor_that_differs_by_rank_decides_alike(tmp_path: Path) -> None:
    """Early stopping, the best checkpoint and a plateau scheduler go by rank 0's value, whatever others have."""

    def job(rank: int) -> tuple[Any, ...]:
        module = JOB.network()

        def validation_step(batch: Any, batch_idx: int) -> None:
            epoch = module.trainer.current_epoch
            module.log("own", float(epoch if rank == 0 else -epoch), rank_zero_only=rank == 1 and epoch == 1)

        def configure_optimizers() -> Any:
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            return [optimizer], [{"scheduler": scheduler, "monitor": "own"}]

        module.validation_step, module.configure_optimizers = validation_step, configure_optimizers
        best = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}", monitor="own", save_top_k=1)
        stop = EarlyStopping("own", patience=2)
        trainer = fit(rank, tmp_path, best, stop, module=module, max_epochs=10, log_every_n_steps=1)
        return trainer.global_step, best.best_model_path, stop.wait_count, trainer.optimizers[0].param_groups[0]["lr"]

    first, second = on_two(job)
    assert first == second
    assert first[0] == 18
    assert Path(first[1]).name == "epoch=0.ckpt"


def test_an_error_of_one_rank_ends_both(tmp_path: Path) -> None:
    """A rank that raises leaves at once, though its process lives on: the other gets an error and does not hang."""
    noticed = multiprocessing.get_context("fork").Event()

    def job(rank: int) -> str:
        def fail(trainer: Any) -> None:
            raise ValueError("broken here")

        keeper = ModelCheckpoint(dirpath=tmp_path, save_on_exception=True, every_n_epochs=5)
        with pytest.raises((ValueError, RuntimeError)) as caught:
            fit(rank, tmp_path, At(1, 2, fail), keeper)
        if rank == 0:
            noticed.set()
        assert noticed.wait(20), "the other rank hangs while this process lives"
        return type(caught.value).__name__

    assert on_two(job) == ["RankFailedError", "ValueError"]


def test_one_rank_may_read_the_metrics(tmp_path: Path) -> None:
    """Rank 0 alone reads callback_metrics in a batch hook while a metric object is unread: nobody hangs."""
    import torchmetrics

    def job(rank: int) -> float:
        module = JOB.network()
        module.seen = torchmetrics.MeanMetric()
        whole = module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            module.seen.update(float(rank))
            module.log("seen", module.seen, on_step=True, on_epoch=True)
            return whole(batch, batch_idx)

        module.training_step, module.validation_step = training_step, lambda batch, batch_idx: None
        reading = At(0, 2, lambda trainer: dict(trainer.callback_metrics))
        return float(fit(rank, tmp_path, reading, module=module, log_every_n_steps=4).callback_metrics["seen_epoch"])

    assert on_two(job) == [0.5, 0.5]


@pytest.mark.filterwarnings("ignore:.*is monitored, and logged in training as well")
def test_training_is_current_in_a_validation_of_all_ranks(tmp_path: Path) -> None:
    """Inside the epoch ranks see one value of what they log together, and decide at its end by that and as rank 0."""
    import torchmetrics

    class Look(Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            names = ("mean", "object", "shared", "own")
            self.seen.append([float(trainer.callback_metrics[name]) for name in names])

    def job(rank: int) -> Any:
        module = JOB.network()
        module.object = torchmetrics.MeanMetric()
        whole = module.training_step

        def training_step(batch: Any, batch_idx: int) -> Any:
            value = float(module.global_step + 10 * rank)
            module.object.update(value)
            module.log("object", module.object, on_step=False, on_epoch=True)
            module.log("mean", value, on_step=False, on_epoch=True, sync_dist=True)
            module.log("shared", -1.0)
            module.log("own", float(rank), on_step=False, on_epoch=True)
            if rank == 0:
                module.log("alone", value, on_step=False, on_epoch=True, rank_zero_only=True)
            return whole(batch, batch_idx)

        def validation_step(batch: Any, batch_idx: int) -> None:
            module.log("shared", 1.0 + module.global_step, sync_dist=True)

        module.training_step, module.validation_step = training_step, validation_step
        look, stop = Look(), EarlyStopping("object", mode="min", patience=1)
        saves = [
            ModelCheckpoint(tmp_path, monitor=m, filename=f"{m}-{{step}}", save_top_k=-1) for m in ("alone", "shared")
        ]
        trainer = fit(rank, tmp_path, look, stop, *saves, module=module, val_check_interval=3)
        return look.seen, trainer.global_step, float(stop.best_score), sorted(p.name for p in tmp_path.iterdir())

    (first, *rest), (second, *others) = on_two(job)
    assert [row[:3] for row in first] == [[6.0, 6.0, 4.0], [7.5, 7.5, 7.0], [12.0, 12.0, 10.0], [13.5, 13.5, 13.0]]
    assert [row[:3] for row in second] == [row[:3] for row in first]
    assert ({row[3] for row in first}, {row[3] for row in second}) == ({0.0}, {1.0})
    assert rest == others
    assert rest[:2] == [12, 7.5]
    wanted = {*(f"alone-step={n}.ckpt" for n in (6, 12)), *(f"shared-step={n}.ckpt" for n in (3, 6, 9, 12))}
    assert wanted <= set(rest[2])
    assert not {f"alone-step={n}.ckpt" for n in (3, 9)} & set(rest[2])


def test_a_missing_checkpoint_is_an_error_on_every_rank(tmp_path: Path) -> None:
    """What rank 0 does not find is reported by all ranks."""

    def job(rank: int) -> None:
        trainer = JOB.trainer(2, strategy=DDPStrategy(), default_root_dir=tmp_path)
        data = JOB.data(rank, 2)
        with pytest.raises(Exception, match="this file must exist"):
            trainer.fit(JOB.network(), data, data, ckpt_path=tmp_path / "gone.ckpt")

    on_two(job)


def test_a_checkpoint_of_every_so_many_steps_holds_its_own_step(tmp_path: Path) -> None:
    """Where the step decides, both ranks save at that step: the file named for step 4 is of step 4."""

    def job(rank: int) -> list[tuple[str, int]]:
        saver = ModelCheckpoint(tmp_path / "files", filename="{step}", every_n_train_steps=4, save_top_k=-1)
        fit(rank, tmp_path, saver)
        names = sorted(path.name for path in (tmp_path / "files").glob("*.ckpt"))
        return [(n, load_checkpoint(tmp_path / "files" / n)["global_step"]) for n in names]

    expected = [("step=12.ckpt", 12), ("step=4.ckpt", 4), ("step=8.ckpt", 8)]
    assert on_two(job) == [expected, expected]


def test_a_checkpoint_that_cannot_be_written_now_is_an_error_on_both(tmp_path: Path) -> None:
    """save_checkpoint on a disk that refuses rank 0's file raises on every rank, and no rank waits for the other."""
    (tmp_path / "file").write_text("not a folder")
    path = tmp_path / "file" / "inside.ckpt"

    def job(rank: int) -> tuple[int, bool]:
        caught: list[BaseException] = []

        def save(trainer: Any) -> None:
            with pytest.raises((OSError, CheckpointError)) as error:
                trainer.save_checkpoint(path)
            caught.append(error.value)

        trainer = fit(rank, tmp_path, At(0, 2, save), At(1, 2, save))
        return trainer.global_step, isinstance(caught[0], OSError)

    assert on_two(job, timeout=20.0) == 2 * [(12, True)]


@pytest.mark.parametrize(
    ("hook", "batches"), [("on_sanity_check_start", 0), ("on_fit_start", 0), ("on_train_start", 1)]
)
def test_a_signal_before_training_ends_both_at_the_next_batch(tmp_path: Path, hook: str, batches: int) -> None:
    """A signal to one rank before the first batch ends both after one batch, of the sanity check or of training."""

    def job(rank: int) -> int:
        steps: list[int] = []

        def signalled(self: Any, *args: Any) -> None:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        callback = type("Signalled", (Callback,), {hook: signalled})()
        with pytest.raises(SystemExit):
            fit(rank, tmp_path, callback, Counting(steps), num_sanity_val_steps=1)
        return len(steps)

    assert on_two(job) == [batches, batches]


@pytest.mark.filterwarnings("ignore:self.log", "ignore:.*logged by step")
@pytest.mark.parametrize("who", [0, 1])
def test_a_monitor_that_one_rank_logs_is_rank_zeros(tmp_path: Path, who: int) -> None:
    """A monitored name that rank 0 alone logs decides on both; one that rank 1 alone logs is an error that says so."""

    def job(rank: int) -> Any:
        found = []
        for kind in (EarlyStopping("own", patience=0), ModelCheckpoint(tmp_path, monitor="own")):
            module = JOB.network()
            module.validation_step = lambda batch, batch_idx: (
                module.log("own", float(module.current_epoch)) if rank == who else None  # noqa: B023
            )
            try:
                found.append(str(fit(rank, tmp_path, kind, module=module, max_epochs=4).global_step))
            except RuntimeError as error:
                found.append(str(error))
        return found

    first, second = on_two(job)
    if who == 0:
        assert first == second == ["12", "24"]
    else:
        for text in (*first, *second):
            assert "no metric of that name was logged on rank 0, by whose values all ranks decide" in text


@pytest.mark.filterwarnings("ignore:.*returned None, so this batch counts as zero")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_that_all_ranks_skip_changes_nothing(tmp_path: Path, accumulate: int) -> None:
    """training_step that returns None on every rank leaves the weights, and the fit goes on to its end."""

    def job(rank: int) -> Any:
        module = JOB.network()
        before = [p.tolist() for p in module.parameters()]
        module.training_step, module.validation_step = lambda *batch: None, lambda *batch: None
        trainer = fit(rank, tmp_path, module=module, accumulate_grad_batches=accumulate)
        return trainer.current_epoch, before == [p.tolist() for p in module.parameters()]

    assert on_two(job) == [(2, True)] * 2
