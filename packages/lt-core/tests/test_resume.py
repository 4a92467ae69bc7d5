"""Save at every boundary of a small job, resume from each file, compare bit for bit; refuse what cannot be resumed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from logged import logged
from quiet import SILENT
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lt_core.checkpoint import load_checkpoint
from lt_core.state.progress import Progress
from lt_interface.errors import CheckpointError, ConfigError


class Augmented(Dataset[Any]):
    """Samples with fresh noise at every look."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Any:
        return torch.linspace(0, index, 4) + 0.1 * torch.randn(4) + 0.01 * random.random()


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in range(10):
            yield torch.linspace(0, index, 4) + 0.1 * torch.randn(4)


class Net(LightningModule):
    def __init__(self, width: int = 5, interval: str = "step") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))
        self.interval = interval

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if isinstance(batch, dict):
            batch = batch["a"] + batch["b"][: len(batch["a"])].mean()
        loss = (self.net(batch) - batch.sum(1, keepdim=True)).square().mean()
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=2)
        self.log("noise", torch.rand(()))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val", self.net(batch).square().mean() + torch.rand(()))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": self.interval}}


class ByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        optimizer.step()
        return loss


class Plateau(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "val"}}


def shuffled() -> Any:
    return DataLoader(Augmented(), batch_size=2, shuffle=True)


LOADERS: dict[str, Any] = {
    "shuffled": shuffled,
    "list": lambda: [torch.linspace(0, i, 8).view(2, 4) for i in range(5)],
    "stream": lambda: DataLoader(Stream(), batch_size=2),
    "two": lambda: {"a": shuffled(), "b": DataLoader(Augmented(), batch_size=3, shuffle=True)},
    "generator": lambda: DataLoader(
        Augmented(), batch_size=2, shuffle=True, generator=torch.Generator().manual_seed(4)
    ),
}


def trainer(folder: Path, **flags: Any) -> Trainer:
    usual = {**SILENT, "logger": False, "max_epochs": 2, "log_every_n_steps": 1}
    return Trainer(default_root_dir=folder, **{**usual, **flags})


def everywhere(folder: Path) -> list[Callback]:
    """Return callbacks that save after each step and each epoch, and keep every file."""
    return [
        ModelCheckpoint(folder / "ckpt", filename="s{step}", every_n_train_steps=1, save_top_k=-1),
        ModelCheckpoint(folder / "ckpt", filename="e{epoch}", every_n_epochs=1, save_top_k=-1),
    ]


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist().__repr__()
    if isinstance(value, dict):
        return {str(k): bits(v) for k, v in value.items()}
    return [bits(v) for v in value] if isinstance(value, (list, tuple)) else repr(value)


def end_of(run: Trainer, net: Net) -> dict[str, Any]:
    """Return all that must not depend on an interruption."""
    return {
        "weights": bits(net.state_dict()),
        "optimizers": bits([o.state_dict() for o in run.optimizers]),
        "schedulers": bits([s.scheduler.state_dict() for s in run.lr_scheduler_configs]),
        "random": (bits(torch.get_rng_state()), repr(random.getstate())),
        "callback_metrics": bits(dict(run.callback_metrics)),
        "logged_metrics": bits(dict(run.logged_metrics)),
        "history": bits(dict(logged(run))),
        "axis": logged(run).steps,
        "counters": (run.current_epoch, run.global_step),
    }


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Let small tensors not wait for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


JOBS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "plain": (Net, "shuffled", {}),
    "windows": (Net, "shuffled", {"accumulate_grad_batches": 2, "val_check_interval": 3}),
    "validation every batch": (Net, "shuffled", {"val_check_interval": 1}),
    "epoch scheduler": (lambda: Net(interval="epoch"), "shuffled", {"check_val_every_n_epoch": 2, "max_epochs": 3}),
    "plateau": (Plateau, "shuffled", {"gradient_clip_val": 0.5, "log_every_n_steps": 3}),
    "by hand": (ByHand, "shuffled", {}),
    "list": (Net, "list", {"accumulate_grad_batches": 3}),
    "stream": (Net, "stream", {"accumulate_grad_batches": 2, "val_check_interval": 2}),
    "two loaders": (Net, "two", {"num_sanity_val_steps": 0}),
    "own generator": (Net, "generator", {"limit_train_batches": 3, "max_epochs": 3}),
    "across epochs": (Net, "shuffled", {"check_val_every_n_epoch": None, "val_check_interval": 3, "max_epochs": 3}),
    "max steps": (Net, "shuffled", {"max_steps": 8, "max_epochs": -1, "min_epochs": 1}),
    "reloading": (Net, "shuffled", {"reload_dataloaders_every_n_epochs": 1}),
}


@pytest.mark.filterwarnings("ignore:.*cannot be set to its place", "ignore:.*callbacks that are not here")
@pytest.mark.parametrize("job", JOBS)
def test_resumed_from_any_boundary_a_run_ends_with_the_same_bits(job: str, tmp_path: Path) -> None:
    """Weights, optimizer, scheduler, random state, metrics and history are those of the run that was not stopped."""
    make, data, flags = JOBS[job]
    whole, first = make(), trainer(tmp_path / "whole", callbacks=everywhere(tmp_path / "whole"), **flags)
    torch.manual_seed(11)
    random.seed(11)
    first.fit(whole, LOADERS[data](), DataLoader(Augmented(), batch_size=3))
    expected = end_of(first, whole)
    files = sorted((tmp_path / "whole" / "ckpt").glob("*.ckpt"))
    assert len(files) >= first.global_step
    for file in files if job in ("plain", "windows") else files[::3]:
        folder = tmp_path / file.stem
        seldom = ModelCheckpoint(folder / "ckpt", every_n_epochs=50)  # its folder holds the history
        again, run = make(), trainer(folder, callbacks=[seldom], **flags)
        torch.manual_seed(99)
        random.seed(99)
        run.fit(again, LOADERS[data](), DataLoader(Augmented(), batch_size=3), ckpt_path=file)
        found = end_of(run, again)
        for part, value in expected.items():
            assert found[part] == value, f"{part} differs when resumed from {file.name}"


def test_a_longer_run_is_as_if_it_had_been_planned_so(tmp_path: Path) -> None:
    """A finished run that is resumed with a larger max_epochs ends like one that had it from the start."""
    torch.manual_seed(3)
    random.seed(3)
    whole, planned = Net(), trainer(tmp_path / "a", max_epochs=3)
    planned.fit(whole, shuffled(), DataLoader(Augmented(), batch_size=3))
    torch.manual_seed(3)
    random.seed(3)
    part, short = Net(), trainer(tmp_path / "b", max_epochs=1)
    short.fit(part, shuffled(), DataLoader(Augmented(), batch_size=3))
    again, run = Net(), trainer(tmp_path / "b", max_epochs=3)
    run.fit(again, shuffled(), DataLoader(Augmented(), batch_size=3), ckpt_path="last")
    assert bits(again.state_dict()) == bits(whole.state_dict())
    assert bits(torch.get_rng_state()) == bits(torch.get_rng_state())
    assert bits(dict(logged(run))) == bits(dict(logged(planned)))


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    """With the same limit there is nothing to do: weights and counters are those of the file."""
    net, run = Net(), trainer(tmp_path)
    run.fit(net, shuffled(), shuffled_val())
    again, later = Net(), trainer(tmp_path)
    later.fit(again, shuffled(), shuffled_val(), ckpt_path="last")
    assert bits(again.state_dict()) == bits(net.state_dict())
    assert (later.current_epoch, later.global_step) == (2, 10)


def shuffled_val() -> Any:
    return DataLoader(Augmented(), batch_size=3)


def test_on_fit_start_sees_the_resumed_place(tmp_path: Path) -> None:
    """Counters, weights and callbacks are restored before on_fit_start, optimizers after it."""
    net = Net()
    trainer(tmp_path).fit(net, shuffled(), shuffled_val())
    seen: list[Any] = []

    class Looks(Net):
        def on_fit_start(self) -> None:
            run = self.trainer
            seen.append((run.current_epoch, run.global_step, bits(self.state_dict()) == bits(net.state_dict())))
            seen.append(len(run.optimizers[0].state))

        def on_train_start(self) -> None:
            seen.append(len(self.trainer.optimizers[0].state))

    trainer(tmp_path, max_epochs=3).fit(Looks(), shuffled(), shuffled_val(), ckpt_path="last")
    assert seen == [(2, 10, True), 0, 6]


def test_on_train_epoch_start_is_not_repeated_inside_an_epoch(tmp_path: Path) -> None:
    """Resumed in the middle of an epoch, its start hooks have run already; batches go on with their numbers."""
    trainer(tmp_path, max_epochs=1, callbacks=everywhere(tmp_path)).fit(Net(), shuffled(), shuffled_val())
    seen: list[Any] = []

    class Looks(Net):
        def on_train_epoch_start(self) -> None:
            seen.append("start")

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)

    run = trainer(tmp_path / "x", enable_checkpointing=False)
    with pytest.warns(UserWarning, match="callbacks that are not here"):
        run.fit(Looks(), shuffled(), shuffled_val(), ckpt_path=tmp_path / "ckpt" / "sstep=3.ckpt")
    assert seen == [3, 4, "start", 0, 1, 2, 3, 4]


# ------------------------------------------------------------------ what a file cannot do


def saved(folder: Path, net: Net | None = None, **options: Any) -> Path:
    run = trainer(folder, max_epochs=1, enable_checkpointing=False)
    run.fit(net or Net(), shuffled(), shuffled_val())
    run.save_checkpoint(folder / "saved.ckpt", **options)
    return folder / "saved.ckpt"


class NeverTrains(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("no batch may run")


def refuse(folder: Path, path: Any, net: Net | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        trainer(folder, enable_checkpointing=False).fit(
            net or NeverTrains(), shuffled(), shuffled_val(), ckpt_path=path
        )
    return str(caught.value)


def test_a_file_of_weights_only_is_refused(tmp_path: Path) -> None:
    """It cannot be resumed, and the error says how to use it."""
    file = saved(tmp_path, weights_only=True)
    assert "optimizer_states" not in load_checkpoint(file)
    message = refuse(tmp_path, file)
    assert message == (
        f"{file}: a file saved with weights only cannot be resumed. Load it with "
        "NeverTrains.load_from_checkpoint and call fit without ckpt_path."
    )


def test_a_file_of_another_model_lists_what_does_not_fit(tmp_path: Path) -> None:
    """Missing, unexpected and misshaped names are listed before the first batch, at most twenty."""
    file = saved(tmp_path)

    class Other(NeverTrains):
        def __init__(self) -> None:
            super().__init__(width=6)
            self.extra = nn.Linear(1, 1)
            self.net[1] = nn.Identity()

    message = refuse(tmp_path, file, Other())
    assert message.startswith(f"{file}: the weights do not fit Other. Got ")
    assert "missing in the file: extra.weight, extra.bias; " in message
    assert "not in the model: net.1.weight" in message
    assert "of another shape: net.0.weight (file (5, 4), model (6, 4))" in message

    class Many(NeverTrains):
        def __init__(self) -> None:
            super().__init__()
            self.many = nn.ModuleList(nn.Linear(1, 1) for _ in range(30))

    message = refuse(tmp_path, file, Many())
    assert message.count("many.") == 20
    assert "and 40 more" in message


def test_a_newer_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose format this version does not know names both."""
    with monkeypatch.context() as later:
        later.setattr("lt_core.checkpoint.format.safetensors_io.FORMAT", 7)
        file = saved(tmp_path)
    assert "format 7" in refuse(tmp_path, file)


def test_other_optimizers_are_refused(tmp_path: Path) -> None:
    """A resume needs the optimizers and schedulers that were saved."""
    file = saved(tmp_path)

    class Without(NeverTrains):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters())

    class Half(NeverTrains):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.net[0].parameters())
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    assert "it holds the states of 1 schedulers, and configure_optimizers must return as many. Got 0." in refuse(
        tmp_path, file, Without()
    )
    with pytest.warns(UserWarning, match="no optimizer holds"):
        message = refuse(tmp_path, file, Half())
    assert "must hold the same parameters as in the checkpoint" in message
    assert "net.3.weight" in message


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda file: file.unlink(), "this file must exist. Got no such file."),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "saved.ckpt"),
        (lambda file: file.write_bytes(flipped(file.read_bytes())), "saved.ckpt"),
        (lambda file: torch.save({"state_dict": {}}, file), "saved.ckpt"),
        (lambda file: file.write_bytes(b""), "saved.ckpt"),
    ],
    ids=["missing", "truncated", "bit-flipped", "pickle", "empty"],
)
def test_damaged_files_are_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    """Whatever happened to the file, one clear error comes before the first batch."""
    file = saved(tmp_path)
    spoil(file)
    assert message in refuse(tmp_path, file)


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 4]) + data[-4:]


def test_a_missing_file_shows_what_is_there(tmp_path: Path) -> None:
    """The error lists the files of the folder that was meant."""
    saved(tmp_path)
    assert f"In {tmp_path}: saved.ckpt." in refuse(tmp_path, tmp_path / "save.ckpt")


# ------------------------------------------------------------------ words for a path


def test_best_is_the_first_checkpoint_callbacks_best(tmp_path: Path) -> None:
    """The word "best" needs a checkpoint callback that has saved, and then takes its best file."""

    class Scores(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("score", [1.0, 3.0, 2.0][self.current_epoch], on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    without = trainer(tmp_path, enable_checkpointing=False)
    with pytest.raises(ConfigError, match=r'validate\(ckpt_path="best"\): this needs a ModelCheckpoint'):
        without.validate(Net(), shuffled_val(), ckpt_path="best")
    net = Scores()
    run = trainer(tmp_path, max_epochs=3, callbacks=[ModelCheckpoint(tmp_path, monitor="score", mode="max")])
    with pytest.raises(ConfigError, match=r"no checkpoint has been saved yet"):
        run.validate(net, shuffled_val(), ckpt_path="best")
    run.fit(net, shuffled(), shuffled_val())
    best = load_checkpoint(run.checkpoint_callback.best_model_path)
    assert best["epoch"] == 1
    assert bits(net.state_dict()) != bits(best["state_dict"])
    run.validate(net, shuffled_val(), ckpt_path="best", verbose=False)
    assert bits(net.state_dict()) == bits(best["state_dict"])


def test_without_a_model_the_best_is_implied(tmp_path: Path) -> None:
    """test() after fit takes the last model with its best weights, and says so."""
    net, run = Net(), trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=1)])
    run.fit(net, shuffled(), shuffled_val())
    with torch.no_grad():
        next(net.net.parameters()).zero_()
    with pytest.warns(UserWarning, match=r"no model was given.*write trainer\.validate\(model\)"):
        run.validate(dataloaders=shuffled_val(), verbose=False)
    assert next(net.net.parameters()).abs().sum() > 0


def test_last_starts_afresh_where_there_is_nothing(tmp_path: Path) -> None:
    """The word "last" warns that there is no checkpoint and begins; "auto" begins without a word."""
    run = trainer(tmp_path / "a", max_epochs=1)
    with pytest.warns(UserWarning, match=r'fit\(ckpt_path="last"\): no checkpoint was found'):
        run.fit(Net(), shuffled(), shuffled_val(), ckpt_path="last")
    run = trainer(tmp_path / "b", max_epochs=1)
    run.fit(Net(), shuffled(), shuffled_val(), ckpt_path="auto")
    assert run.global_step == 5
    run = trainer(tmp_path / "b", max_epochs=2)
    run.fit(Net(), shuffled(), shuffled_val(), ckpt_path="auto")
    assert run.global_step == 10


def test_last_passes_over_damaged_files(tmp_path: Path) -> None:
    """The newest file that is whole is taken; damaged ones are named in a warning."""
    trainer(tmp_path, callbacks=everywhere(tmp_path)).fit(Net(), shuffled(), shuffled_val())
    for name in ("sstep=10.ckpt", "sstep=9.ckpt", "eepoch=1.ckpt"):
        file = tmp_path / "ckpt" / name
        file.write_bytes(file.read_bytes()[:-9])
    steps: list[int] = []
    run = trainer(tmp_path, callbacks=everywhere(tmp_path))
    run.on("train_start")(lambda trainer: steps.append(trainer.global_step))
    with pytest.warns(UserWarning, match=r"step=10\.ckpt"):
        run.fit(Net(), shuffled(), shuffled_val(), ckpt_path="last")
    assert steps == [8]


def test_a_sticky_path(tmp_path: Path) -> None:
    """trainer.ckpt_path is used by each later call that gives none."""
    file = saved(tmp_path)
    run = trainer(tmp_path, enable_checkpointing=False)
    run.ckpt_path = file
    net = Net()
    run.validate(net, shuffled_val(), verbose=False)
    assert bits(net.state_dict()) == bits(load_checkpoint(file)["state_dict"])


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
@pytest.mark.parametrize("weights_only", [True, False])
def test_entry_points_load_the_weights_they_are_given(tmp_path: Path, stage: str, weights_only: bool) -> None:
    """validate, test and predict take weights and counters from a file of either kind; fit's counters are its own."""

    class All(Net):
        def test_step(self, batch: Any, batch_idx: int) -> None:
            pass

        def forward(self, x: Any) -> Any:
            return self.net(x)

    file, net = saved(tmp_path, weights_only=weights_only), All()
    run = trainer(tmp_path, enable_checkpointing=False)
    getattr(run, stage)(net, shuffled_val(), ckpt_path=file)
    tree = load_checkpoint(file)
    assert bits(net.state_dict()) == bits(tree["state_dict"])
    assert (run.global_step, run.current_epoch) == (tree["global_step"], tree["epoch"])
    assert run._progress == Progress()


# ------------------------------------------------------------------ states of others


class Counts(Callback):
    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches, "kept": {(1, 2): {3.0}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict["kept"] == {(1, 2): {3.0}}
        self.batches = state_dict["batches"]


class Data(LightningDataModule):
    seen = 0

    def train_dataloader(self) -> Any:
        return shuffled()

    def val_dataloader(self) -> Any:
        return shuffled_val()

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen + 1}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seen = state_dict["seen"]


def test_states_of_callbacks_data_module_and_handlers_go_on(tmp_path: Path) -> None:
    """What callbacks and data module keep, and the counts of handlers, are restored."""
    counts, data = Counts(), Data()
    trainer(tmp_path, max_epochs=1, callbacks=[counts]).fit(Net(), datamodule=data)
    again, other = Counts(), Data()
    run, called = trainer(tmp_path, callbacks=[again]), []
    run.on("train_batch_end", every=4)(lambda trainer: called.append(trainer.global_step))
    run.fit(Net(), datamodule=other, ckpt_path="last")
    assert again.batches == 10
    assert other.seen == 1
    assert called == [9]


def test_what_the_user_adds_to_a_checkpoint_comes_back(tmp_path: Path) -> None:
    """on_save_checkpoint may add any plain value or tensor, on_load_checkpoint finds it."""

    class Adds(Net):
        extra: Any = None

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mine"] = {"a": (1, None), "t": torch.arange(3)}

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            self.extra = checkpoint["mine"]

    file, net = saved(tmp_path, Adds()), Adds()
    trainer(tmp_path, enable_checkpointing=False).fit(net, shuffled(), shuffled_val(), ckpt_path=file)
    assert net.extra["a"] == (1, None)
    assert torch.equal(net.extra["t"], torch.arange(3))


def test_early_stopping_goes_on_counting(tmp_path: Path) -> None:
    """Patience that was half used up when the run stopped is not given anew."""

    class Flat(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("flat", 1.0)

    def stopping() -> EarlyStopping:
        return EarlyStopping("flat", patience=4)

    whole = trainer(tmp_path / "a", max_epochs=20, limit_train_batches=1, callbacks=[stopping()])
    whole.fit(Flat(), shuffled(), shuffled_val())
    trainer(tmp_path / "b", max_epochs=3, limit_train_batches=1, callbacks=[stopping()]).fit(
        Flat(), shuffled(), shuffled_val()
    )
    run = trainer(tmp_path / "b", max_epochs=20, limit_train_batches=1, callbacks=[stopping()])
    run.fit(Flat(), shuffled(), shuffled_val(), ckpt_path="last")
    assert run.current_epoch == whole.current_epoch == 5


def test_a_timer_goes_on_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that was used before the stop counts against the budget of the resumed run."""
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Slow(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

    def fit(epochs: int, path: str | None) -> Trainer:
        run = trainer(tmp_path, max_epochs=epochs, callbacks=[Timer(timedelta(seconds=12.5))], num_sanity_val_steps=0)
        run.fit(Slow(), shuffled(), shuffled_val(), ckpt_path=path)
        return run

    fit(1, None)
    clock[0] += 1000.0
    assert fit(9, "last").global_step == 13


def test_a_file_saved_inside_a_hook_says_that_it_is_not_exact(tmp_path: Path) -> None:
    """save_checkpoint inside a batch is no boundary: resuming from it warns."""
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.on("before_backward", once=3)(lambda trainer: trainer.save_checkpoint(tmp_path / "inside.ckpt"))
    run.fit(Net(), shuffled(), shuffled_val())
    assert not load_checkpoint(tmp_path / "inside.ckpt")["progress"]["exact"]
    later = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    with pytest.warns(UserWarning, match="not at a boundary of the loop"):
        later.fit(Net(), shuffled(), shuffled_val(), ckpt_path=tmp_path / "inside.ckpt")


@pytest.mark.filterwarnings("ignore:ModelCheckpoint.*was written with")
def test_a_folder_that_was_moved_is_resumed(tmp_path: Path) -> None:
    """The checkpoints and the journal beside them are found where they lie now."""
    run = trainer(tmp_path / "old", max_epochs=1)
    run.fit(Net(), shuffled(), shuffled_val())
    shutil.move(tmp_path / "old", tmp_path / "new")
    later = trainer(tmp_path / "new")
    later.fit(Net(), shuffled(), shuffled_val(), ckpt_path="last")
    assert len(logged(later)["loss_step"]) == 10
