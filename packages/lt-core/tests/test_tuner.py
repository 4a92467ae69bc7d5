"""Test that the tuner finds what it is asked for, and leaves everything else as it was, bit by bit."""

from __future__ import annotations

import inspect
import os
import signal
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from quiet import QUIET as SILENT
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from tuned import Net, Noisy, states, trainer

from lt_core import LightningDataModule, LightningModule, Trainer, seed_everything
from lt_core.callbacks import BatchSizeFinder, BatchTransform, LearningRateFinder, ModelCheckpoint
from lt_core.loops.trial import is_out_of_memory
from lt_core.tuner import Tuner
from lt_interface import MisconfigurationException

QUIET: dict[str, Any] = {**SILENT, "max_epochs": 1}
FINDS = {
    "rate": lambda tuner, net, **more: tuner.lr_find(net, num_training=20, update_attr=False, **more),
    "linear": lambda tuner, net, **more: tuner.lr_find(net, num_training=9, mode="linear", update_attr=False, **more),
    "size": lambda tuner, net, **more: tuner.scale_batch_size(net, max_trials=3, init_val=4, max_val=4, **more),
    "size, full": lambda tuner, net, **more: tuner.scale_batch_size(net, init_val=2, mode="binsearch", **more),
    "test": lambda tuner, net, **more: tuner.scale_batch_size(net, init_val=4, max_val=4, method="test", **more),
    "predict": lambda tuner, net, **more: tuner.scale_batch_size(net, init_val=4, max_val=4, method="predict", **more),
}


@pytest.mark.parametrize("what", FINDS)
@pytest.mark.parametrize("after", [False, True], ids=["new", "fitted"])
def test_nothing_is_changed(tmp_path: Path, what: str, after: bool) -> None:
    """Weights, gradients, attributes, random states, data, the trainer and its folder are the same bits afterwards."""
    torch.manual_seed(3)
    callbacks = [ModelCheckpoint(), LearningRateFinder(num_training_steps=20, early_stop_threshold=None)]
    net, runner = Net(most=4), trainer(tmp_path, logger="csv", callbacks=callbacks)
    if after:
        runner.fit(net)
    before = states(runner, net, tmp_path)
    FINDS[what](Tuner(runner), net)
    net.batch_size = net.hparams.batch_size = 4
    assert states(runner, net, tmp_path) == before


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("what", ["rate", "size"])
def test_nothing_is_changed_by_an_error(tmp_path: Path, what: str, error: BaseException) -> None:
    """An error inside a step, or an interrupt there, comes out as it is, and all is as before."""
    net, runner = Net(), trainer(tmp_path, logger="csv")
    net.error = error
    before = states(runner, net, tmp_path)
    with pytest.raises(type(error)):
        FINDS[what](Tuner(runner), net)
    assert states(runner, net, tmp_path) == before


def test_nothing_is_changed_by_a_signal(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SIGINT in a search ends it after the step, which is said, and all is as before."""
    net, runner = Net(), trainer(tmp_path)
    before = states(runner, net, tmp_path)

    class Interrupted(Net):
        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    net.__class__ = Interrupted
    with caplog.at_level("INFO"), pytest.raises(KeyboardInterrupt):
        Tuner(runner).lr_find(net)
    assert states(runner, net, tmp_path) == before
    assert "`Tuner` stopped: SIGINT. The model and its data are as they were." in caplog.text


@pytest.mark.parametrize("finder", [lambda: LearningRateFinder(num_training_steps=12, update_attr=False), None])
def test_a_fit_after_a_search_is_the_fit_without(tmp_path: Path, finder: Any) -> None:
    """A search, by the tuner before or by a callback inside, changes no bit of the training that follows."""

    def run(searches: bool) -> Any:
        seed_everything(5)
        net, folder = Net(), tmp_path / str(searches)
        folder.mkdir()
        callbacks = [finder()] if searches and finder is not None else []
        runner = trainer(folder, logger="csv", callbacks=callbacks, log_every_n_steps=1)
        if searches and finder is None:
            Tuner(runner).lr_find(net, num_training=12, update_attr=False)
            Tuner(runner).scale_batch_size(net, max_val=4)
        runner.fit(net)
        files = sorted(path.name for path in folder.rglob("*") if path.suffix in (".csv", ".ckpt"))
        optimizer = runner.optimizers[0].state_dict()
        found = {**states(runner, net, folder), "trainer": dict(runner.history), "files": files, "optimizer": optimizer}
        return {key: repr(value) for key, value in found.items()}

    assert run(True) == run(False)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("batches", torch.zeros(1))
        self.seen = 0

    def forward(self, batch: Tensor) -> Tensor:
        self.batches += 1
        self.seen += 1
        return batch


@pytest.mark.parametrize("inside", [False, True], ids=["tuner", "callback"])
def test_batches_are_changed_as_in_the_fit(tmp_path: Path, inside: bool) -> None:
    """What changes batches on the device does so while something is tried; its state is put back."""
    change = Counting()
    finder = [LearningRateFinder(num_training_steps=12, update_attr=False)] * inside
    runner = trainer(tmp_path, callbacks=[BatchTransform(change), *finder], max_steps=1)
    if inside:
        runner.fit(Net())
    else:
        Tuner(runner).lr_find(Net(), num_training=12, update_attr=False, early_stop_threshold=None)
    assert change.seen >= 12
    assert change.batches == inside  # that of the fit


def test_the_trainer_after_a_search_resumes_what_it_saved(tmp_path: Path) -> None:
    """A trainer that has fitted goes on from its checkpoint after a search as without one."""

    def run(searches: bool) -> list[bytes]:
        seed_everything(5)
        net = Net()
        runner = trainer(tmp_path, logger=False, callbacks=[ModelCheckpoint(tmp_path / str(searches), save_last=True)])
        runner.fit(net)
        if searches:
            Tuner(runner).lr_find(net, num_training=20)
            net.lr = 0.01
        runner.max_epochs = 3
        runner.fit(net, ckpt_path=tmp_path / str(searches) / "last.ckpt")
        return [tensor.numpy().tobytes() for tensor in net.state_dict().values()]

    assert run(True) == run(False)


class Data(LightningDataModule):
    """Data module that holds the batch size."""

    def __init__(self, batch_size: int = 2) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> Any:
        return DataLoader(Noisy(), batch_size=self.batch_size)


class Plain(LightningModule):
    """Module without data and attributes."""

    def __init__(self, most: int = 10**6) -> None:
        super().__init__()
        self.layer, self.most, self.seen = nn.Linear(4, 1), most, list[int]()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = batch["a"] if isinstance(batch, dict) else batch
        if len(batch) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        loss: Tensor = self.layer(batch).pow(2).mean()
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[Tensor]):
    """Data without a length."""

    def __iter__(self) -> Any:
        yield from torch.ones(40, 4)


LOADERS = {
    "loader": lambda: DataLoader(Noisy(64), batch_size=4, shuffle=True),
    "dict": lambda: {"a": DataLoader(Noisy(64), batch_size=4), "b": DataLoader(Noisy(64), 2)},
    "iterable": lambda: DataLoader(Stream(), batch_size=4),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_a_size_for_loaders_that_are_given(kind: str) -> None:
    """Loaders are copied with each size: the largest that fits is returned, and they are as before."""
    loader = LOADERS[kind]()
    assert Tuner(Trainer(**QUIET)).scale_batch_size(Plain(most=13), loader) == 8
    assert Tuner(Trainer(**QUIET)).scale_batch_size(Plain(most=13), loader, mode="binsearch", margin=0) == 13
    first = loader["a"] if isinstance(loader, dict) else loader
    assert (first.batch_size, first.batch_sampler.batch_size) == (4, 4)


def test_a_size_in_the_data_module() -> None:
    """The data module's attribute is set, and sizes end with the dataset."""
    data = Data()
    assert Tuner(Trainer(**QUIET)).scale_batch_size(Plain(), datamodule=data) == 32
    assert data.batch_size == 32


@pytest.mark.parametrize(("drops", "expected"), [(False, 32), (True, 5)])
def test_sizes_end_with_the_longest_dataset(drops: bool, expected: int) -> None:
    """Of several loaders the longest says where sizes end; where short batches are dropped, the shortest."""
    loaders = [DataLoader(Noisy(size), 2, drop_last=drops) for size in (32, 5)]

    class Two(Net):
        def test_step(self, batch: Tensor, batch_idx: int, dataloader_idx: int = 0) -> None:
            return None

    assert Tuner(Trainer(**QUIET)).scale_batch_size(Two(), dataloaders=loaders, method="test") == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 16),
        ({"init_val": 3}, 24),
        ({"init_val": 30}, 15),
        ({"max_val": 10}, 10),
        ({"max_trials": 2}, 4),
        ({"mode": "binsearch", "margin": 0.0}, 25),
        ({"mode": "binsearch"}, 23),
        ({"mode": "binsearch", "init_val": 31, "margin": 0.0}, 25),
        ({"keep_global_batch": True, "mode": "binsearch", "margin": 0.0}, 4),
    ],
    ids=str,
)
def test_sizes(settings: dict[str, Any], expected: int) -> None:
    """The size is the largest that was tried and fitted, as mode, first size and limits have it; never one untried."""
    net = Net(most=25)
    assert Tuner(Trainer(**QUIET)).scale_batch_size(net, **settings) == expected == net.batch_size


def test_the_same_global_batch_by_accumulation() -> None:
    """What a step takes stays the same: the size divides it, and the trainer accumulates the rest."""
    net, runner = Net(most=5, batch_size=24), Trainer(**QUIET)
    assert Tuner(runner).scale_batch_size(net, mode="binsearch", margin=0, keep_global_batch=True) == 4
    assert (net.batch_size, runner.accumulate_grad_batches) == (4, 6)


def test_several_groups_keep_their_ratio() -> None:
    """Each group's rate is the attribute's rate times what it was made with."""
    rates = set[tuple[float, float]]()

    class Two(Net):
        def configure_optimizers(self) -> Any:
            first, *others = self.layers
            groups = [
                {"params": first.parameters(), "lr": self.lr * 10},
                {"params": nn.ModuleList(others).parameters()},
            ]
            return torch.optim.SGD(groups, lr=self.lr)

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            first, second = self.trainer.optimizers[0].param_groups
            rates.add((round(first["lr"] / second["lr"], 6), round(second["lr"], 9)))

    more: dict[str, Any] = {"early_stop_threshold": None, "update_attr": False}
    found = Tuner(Trainer(**QUIET)).lr_find(Two(), num_training=5, min_lr=1e-4, max_lr=1, **more)
    assert found is not None
    assert found.results["lr"] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert sorted(rates) == [(10.0, round(lr, 9)) for lr in found.results["lr"]]


@pytest.mark.parametrize("name", ["", "lr", "hparams.lr", "optim.rate"])
def test_where_the_rate_is_set(name: str) -> None:
    """The attribute is found by its name or path, and set wherever it is held."""
    seed_everything(1)
    net: Any = Net()
    net.optim = {"rate": 0.01}
    found = Tuner(Trainer(**QUIET)).lr_find(net, num_training=20, attr_name=name)
    rate = found.suggestion()
    assert rate is not None
    assert rate == (net.optim["rate"] if name == "optim.rate" else net.hparams.lr)
    assert (net.lr == rate) == (name in ("", "lr"))


def test_a_search_that_diverges_ends_early() -> None:
    """A loss of several times the lowest ends the search, as one that is not finite does; None tries every rate."""
    tries = {"num_training": 40, "max_lr": 1e12, "update_attr": False, "min_lr": 1e-3}

    class Steep(Plain):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * 100

    tuner, data = Tuner(Trainer(**QUIET)), DataLoader(Noisy(), 4)
    early = tuner.lr_find(Steep(), data, **tries)
    late = tuner.lr_find(Steep(), data, early_stop_threshold=None, **tries)
    assert len(early.results["lr"]) < len(late.results["lr"]) == 40


def test_accumulated_batches_are_one_step_of_the_search() -> None:
    """A rate is that of a whole optimizer step, and its loss the mean over the step's batches."""
    net, rates = Net(batch_size=8), list[float]()
    net.on_train_batch_end = lambda *args: rates.append(net.trainer.optimizers[0].param_groups[0]["lr"])  # type: ignore[method-assign]
    runner = Trainer(accumulate_grad_batches=2, **QUIET)
    found = Tuner(runner).lr_find(net, num_training=3, update_attr=False, early_stop_threshold=None)
    assert rates == [lr for lr in found.results["lr"] for _ in range(2)]


@pytest.mark.filterwarnings("ignore:.*returned None")
def test_a_batch_without_a_loss_is_left_out_of_the_curve() -> None:
    """A step whose batches are skipped has no loss in the results, and those of later steps go on without it."""

    class Skipping(Net):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 3 else loss

    found = Tuner(Trainer(**QUIET)).lr_find(Skipping(), num_training=8, update_attr=False, early_stop_threshold=None)
    assert found is not None
    assert [torch.tensor(loss).isnan().item() for loss in found.results["loss"]] == [i == 3 for i in range(8)]


def test_a_development_run_skips_the_search() -> None:
    """With fast_dev_run nothing is tried, and a warning says so."""
    net, tuner = Net(), Tuner(Trainer(fast_dev_run=True, enable_progress_bar=False, enable_model_summary=False))
    with pytest.warns(UserWarning, match="fast_dev_run"):
        assert tuner.lr_find(net) is None
    with pytest.warns(UserWarning, match="fast_dev_run"):
        assert tuner.scale_batch_size(net) is None
    assert net.calls == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_calls_of_older_programs() -> None:
    """The flags auto_lr_find and auto_scale_batch_size with trainer.tune, and trainer.tuner, do what the tuner does."""
    net: Any = Net(most=9)
    net.rate = 0.1
    with pytest.warns(FutureWarning, match=r"Tuner\(trainer\).lr_find\(model\)"):
        runner = Trainer(auto_lr_find="rate", auto_scale_batch_size="binsearch", **QUIET)
    found = runner.tune(net, lr_find_kwargs={"num_training": 20}, scale_batch_size_kwargs={"margin": 0})
    assert (found["scale_batch_size"], found["lr_find"].suggestion()) == (9, net.rate) != (9, 0.1)
    assert runner.tuner.lr_find(net, num_training=20) is not None
    assert Trainer(**QUIET).tune(net) == {}


class ByHand(Plain):
    """Module that steps by itself."""

    lr = batch_size = 1

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Fixed(Plain):
    """Module whose rate and size cannot be set."""

    tried = False
    lr = batch_size = property(lambda self: 1)
    held = MappingProxyType({"lr": 0.1})

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.tried = True
        return super().training_step(batch, batch_idx)


class Sizeless(LightningDataModule):
    """Data module whose size is nobody's."""

    def train_dataloader(self) -> Any:
        return DataLoader(Noisy(), batch_size=4)


WRONG: dict[str, tuple[Any, str]] = {
    "manual": (lambda t: t.lr_find(ByHand(), DataLoader(Noisy())), "manual optimization"),
    "attribute": (lambda t: t.lr_find(Net(), attr_name="learning"), "needs an attribute 'learning'"),
    "nearest": (lambda t: t.scale_batch_size(Net(), batch_arg_name="batchsize"), 'Did you mean "batch_size"'),
    "no attribute": (lambda t: t.lr_find(Plain(), DataLoader(Noisy())), "the rate needs an attribute"),
    "no size": (lambda t: t.scale_batch_size(Plain(), datamodule=Sizeless()), "must take its batch size from"),
    "method": (lambda t: t.lr_find(Net(), method="test"), "rates are tried in training"),
    "no method": (lambda t: t.scale_batch_size(Net(), method="predicts"), 'Did you mean "predict"'),
    "loaders": (lambda t: t.lr_find(Net(), dataloaders=[]), "takes no dataloaders"),
    "train loaders": (lambda t: t.scale_batch_size(Net(), [], method="test"), "takes no train_dataloaders"),
    "order": (lambda t: t.lr_find(Net(), min_lr=1, max_lr=0.1), "the rates must grow"),
    "few": (lambda t: t.lr_find(Net(), num_training=2), "at least 3"),
    "mode": (lambda t: t.lr_find(Net(), mode="exponentially"), 'Did you mean "exponential"'),
    "size mode": (lambda t: t.scale_batch_size(Net(), mode="powers"), 'Did you mean "power"'),
    "margin": (lambda t: t.scale_batch_size(Net(), margin=1), "margin=1"),
    "steps": (lambda t: t.scale_batch_size(Net(), steps_per_trial=0, init_val=0), "steps_per_trial=0"),
    "batches": (lambda t: t.scale_batch_size(Plain(), [torch.ones(2, 4)]), "must be a DataLoader with a batch size"),
    "no batch size": (lambda t: t.scale_batch_size(Plain(), DataLoader(Noisy(), batch_size=None)), "batch_size=None"),
    "iterator": (lambda t: t.lr_find(Net(), iter([torch.ones(2, 4)])), "data that can be read again"),
    "model": (lambda t: t.lr_find(nn.Linear(1, 1)), "LightningModule"),
    "none fits": (
        lambda t: t.scale_batch_size(Net(most=0)),
        "must fit into memory. Got none down to 1",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_searched_is_one_error(name: str) -> None:
    """Wrong arguments, and modules and loaders that cannot be tried, are one clear error."""
    call, text = WRONG[name]
    with pytest.raises(MisconfigurationException, match=text):
        call(Tuner(Trainer(**QUIET)))


@pytest.mark.parametrize("what", ["lr", "size", "held"])
def test_what_cannot_be_set_is_an_error_before_the_search(what: str) -> None:
    """An attribute that is there but cannot be set is one error, and no step is tried."""
    net, tuner, batches = Fixed(), Tuner(Trainer(**QUIET)), DataLoader(Noisy(), 4)
    finds = {
        "lr": lambda: tuner.lr_find(net, batches),
        "held": lambda: tuner.lr_find(net, batches, attr_name="held.lr"),
        "size": lambda: tuner.scale_batch_size(net, batches),
    }
    with pytest.raises(MisconfigurationException, match=r"needs an attribute .* that can be set"):
        finds[what]()
    assert not net.tried


def test_a_loader_that_ignores_the_attribute_is_an_error() -> None:
    """A hook whose loader has a size of its own is refused, since the attribute would change nothing."""

    class Fixed(Net):
        def train_dataloader(self) -> Any:
            return DataLoader(self.data, batch_size=4)

    with pytest.raises(MisconfigurationException, match=r"Fixed.train_dataloader: .*batch_size=self.batch_size"):
        Tuner(Trainer(**QUIET)).scale_batch_size(Fixed())


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED."), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed."), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_what_counts_as_exhausted_memory(error: BaseException, counts: bool) -> None:
    """Memory of any device and of the process counts, also as the cause of another error; nothing else does."""
    assert is_out_of_memory(error) is counts
    outer = RuntimeError("a step failed")
    outer.__cause__ = error
    assert is_out_of_memory(outer) is counts


def test_the_arguments_are_those_of_the_callbacks() -> None:
    """Tuner and callbacks take the same settings, with the same defaults."""
    for method, callback in ((Tuner.lr_find, LearningRateFinder), (Tuner.scale_batch_size, BatchSizeFinder)):
        takes = {
            n.replace("num_training_steps", "num_training"): p
            for n, p in inspect.signature(callback).parameters.items()
        }
        given = inspect.signature(method).parameters
        assert {name: given[name].default for name in takes} == {name: p.default for name, p in takes.items()}
