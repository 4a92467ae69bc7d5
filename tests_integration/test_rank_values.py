"""Log on several ranks: every value is that of one process, whatever the ranks' shares of the samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchmetrics
from gathering import Gathering
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_interface import MisconfigurationException
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher

SECONDS = 120.0
GLOBAL = 12  # samples of a global batch: of 1, 2, 3 and 4 ranks


class Middle(torchmetrics.Metric):
    """Metric object of torchmetrics' kind that keeps a list of whole numbers; one without samples has none."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: torch.Tensor) -> None:
        self.values.append(values)

    def compute(self) -> torch.Tensor:
        values = torch.cat(self.values) if isinstance(self.values, list) else self.values
        return values.double().median()


class Net(LightningModule):
    """Linear module that logs in each way that a value can be reduced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(2, 1)
        self.forwarded, self.updated = torchmetrics.MeanMetric(), torchmetrics.MeanMetric()
        self.middle, self.ours = Middle(), Gathering()
        self.several = torchmetrics.MetricCollection(
            [torchmetrics.MeanSquaredError(), torchmetrics.MeanAbsoluteError()]
        )

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        x = batch[0]
        self.log("plain", x.mean(), sync_dist=True)
        self.log("both", float(x.mean()), on_step=True, on_epoch=True, sync_dist=True, batch_size=len(x))
        self.log("sum", x.sum(), on_step=True, on_epoch=True, sync_dist=True, reduce_fx="sum")
        self.log("least", x.min().item(), on_step=True, on_epoch=True, sync_dist=True, reduce_fx="min")
        self.log("most", x.max().numpy(), on_step=True, on_epoch=True, sync_dist=True, reduce_fx="max")
        self.forwarded(x)
        self.log("forwarded", self.forwarded, on_step=False, on_epoch=True)
        self.updated.update(x)
        self.log("updated", self.updated, on_step=True, on_epoch=True)
        return self.layer(x).square().mean()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        x = batch[0]
        target = (x[:, 0] * 7 % 2 > 0.9).int()
        for op in ("mean", "sum", "min", "max"):
            self.log(op, getattr(x, op)(), sync_dist=True, reduce_fx=op)
        self.middle.update((x[:, 0] * 5).round().long())
        self.log("middle", self.middle)
        self.ours.update(x[:, 0].round(decimals=4).tolist())
        self.log("ours", self.ours)
        self.several.update(x[:, 0], target)
        self.log_dict(self.several)

    test_step = validation_step

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return batch[0][:, 0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def loader(n: int, batch: int, **options: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(2.0 * n).reshape(n, 2) / 10), batch_size=batch, **options)


def trainer_of(size: int, folder: Path, **flags: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    ranks = {"devices": size, "launcher": ReferenceLauncher()} | ({"strategy": DDPStrategy()} if size > 1 else {})
    own = {"accelerator": "cpu", "max_epochs": 1, "num_sanity_val_steps": 0, "default_root_dir": folder}
    return Trainer(**{**quiet, **ranks, **own, **flags})


def on(size: int, job: Callable[[int], Any]) -> list[Any]:
    Net().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, size, timeout=SECONDS)


LENGTHS = (9, 12, 25, 33, 35, 37)


def trained(size: int, folder: Path, every: int = 1, lengths: tuple[int, ...] = LENGTHS) -> list[dict[str, Any]]:
    """Return what a fit over each number of samples logs at its steps and its end."""
    found = []
    for n in lengths:
        trainer = trainer_of(size, folder / f"{size}-{n}-{every}", logger=True, log_every_n_steps=every)
        trainer.fit(Net(), loader(n, GLOBAL // size), loader(4, 2))
        steps = {name: list(series.values()) for name, series in trainer.history.steps.items()}
        found.append({name: pytest.approx(values, rel=1e-5) for name, values in steps.items() if name != "epoch"})
    return found


@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_logs_what_one_process_logs(size: int, tmp_path: Path) -> None:
    """Step and epoch values, and metric objects, are of all samples alike, in a last batch that a rank lacks too."""
    expected = trained(1, tmp_path)
    assert {"plain", "both_step", "both_epoch", "sum_step", "most_epoch", "updated_step"} <= set(expected[0])
    first, *_ = on(size, lambda rank: trained(size, tmp_path))
    for n, wanted, found in zip(LENGTHS, expected, first, strict=True):
        assert found == {name: value.expected for name, value in wanted.items()}, n


def evaluated(size: int, folder: Path, lengths: list[int], stage: str = "validate") -> list[Any]:
    """Return what an evaluation of each number of samples finds."""
    found = []
    for n in lengths:
        trainer = trainer_of(size, folder)
        if stage == "predict":
            found.append([float(value) for batch in trainer.predict(Net(), loader(n, 3)) or [] for value in batch])
        else:
            (values,) = getattr(trainer, stage)(Net(), loader(n, 3), verbose=False)
            found.append(values)
    return found


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # on a rank without a sample
@pytest.mark.parametrize(
    ("size", "every"), [(2, 1), (3, 4), (4, 4), *(pytest.param(n, 1, marks=pytest.mark.slow) for n in (3, 4))]
)
def test_each_length_is_evaluated_exactly(size: int, every: int, tmp_path: Path) -> None:
    """Logged values and metric objects of 1 to 33 samples are those of one process, on every rank."""
    lengths = list(range(1, 34, every))
    expected = evaluated(1, tmp_path, lengths)
    for found in on(size, lambda rank: evaluated(size, tmp_path, lengths)):
        for n, wanted, values in zip(lengths, expected, found, strict=True):
            assert values == pytest.approx(wanted, rel=1e-5), n


class Some(Net):
    """Module whose ranks do not log the same names."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_rank and batch_idx == 1:
            return None
        if self.global_rank:
            self.log("theirs", 3.0, on_step=True, on_epoch=True, sync_dist=True)
            self.log("most", float(self.global_rank), sync_dist=True, reduce_fx="max")
        self.log("all", float(self.global_rank), on_step=True, on_epoch=True, sync_dist=True)
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.global_rank == 1:
            self.log("own", 5.0, sync_dist=True)


def test_a_name_that_a_rank_lacks_is_the_others_value(tmp_path: Path) -> None:
    """Rank 0 logs and shows what others alone log with sync_dist, of steps, epochs and evaluations."""

    def job(rank: int) -> Any:
        trainer = trainer_of(3, tmp_path, logger=True, log_every_n_steps=1)
        trainer.fit(Some(), loader(36, 4), loader(9, 3))
        steps = trainer.history.steps if rank == 0 else {}
        return {name: list(values.values()) for name, values in steps.items()}, trainer.callback_metrics

    first, second, third = on(3, job)
    logged = first[0]
    assert logged["theirs_step"] == [3.0, 3.0]  # the second batch has none
    assert logged["most"] == [2.0, 2.0]
    assert logged["all_step"] == [1.0, 0.0, 1.0]
    assert logged["theirs_epoch"] == [3.0]
    assert logged["own"] == [5.0]
    for _, metrics in (first, second, third):
        assert float(metrics["theirs_epoch"]) == 3.0
        assert float(metrics["all_epoch"]) == pytest.approx(6 / 7)
        assert float(metrics["own"]) == 5.0


class Apart(Net):
    """Module with a metric object, and a way to reduce, that differ by rank."""

    kind = "object"

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.kind == "object" and self.global_rank == 0:
            self.updated.update(1.0)
            self.log("updated", self.updated, on_step=False, on_epoch=True)
        if self.kind == "way":
            self.log("way", 1.0, on_epoch=True, sync_dist=True, reduce_fx="max" if self.global_rank else "sum")
        return self.layer(batch[0]).square().mean()


@pytest.mark.parametrize("kind", ["object", "way"])
def test_what_nothing_can_stand_for_is_an_error_on_all(kind: str, tmp_path: Path) -> None:
    """A metric object that a rank lacks, and a value that ranks reduce in other ways, end all ranks with its name."""

    def job(rank: int) -> str:
        net = Apart()
        net.kind = kind
        with pytest.raises(MisconfigurationException) as caught:
            trainer_of(2, tmp_path).fit(net, loader(12, 3), loader(4, 2))
        return str(caught.value)

    first, second = on(2, job)
    assert first == second
    assert "updated (metric object) not on ranks [1]" in first or "(max) not on ranks [0]" in first


def test_predictions_come_in_the_datas_order(tmp_path: Path) -> None:
    """What a launched predict returns has each sample once, in the order of the data, for each length."""
    lengths = [1, 2, 3, 5, 8, 13, 31]
    for size in (2, 3):
        for n in lengths:
            trainer = Trainer(
                accelerator="cpu", strategy="ddp_fork", devices=size, logger=False, max_epochs=1,
                enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
            )  # fmt: skip
            batches = trainer.predict(Net(), loader(n, 3))
            assert torch.cat(batches).tolist() == pytest.approx([i / 5 for i in range(n)])


def memory(line: str) -> int:
    """Return a figure of this process's memory in MiB: ``VmRSS``, or ``VmHWM``, the most so far."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(text.split()[1]) for text in lines if text.startswith(f"{line}:")) // 1024


class Wide(Net):
    """Module whose predictions are large, a mebibyte a batch, and that notes how its ranks' memory grows."""

    def on_predict_start(self) -> None:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the most so far
        self.before = memory("VmRSS")

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> dict[str, Any]:
        return {"row": batch[0][0, 0].clone(), "wide": torch.full((1 << 18,), float(self.global_rank))}

    def teardown(self, stage: str) -> None:
        file = Path(self.trainer.default_root_dir) / f"{self.global_rank}.txt"
        file.write_text(str(memory("VmHWM") - self.before), encoding="utf-8")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory as Linux does")
def test_rank_zero_alone_holds_all_predictions(tmp_path: Path) -> None:
    """Large predictions come in the data's order too, and other ranks hold hardly more than their own."""
    trainer = trainer_of(3, tmp_path, strategy="ddp_fork", launcher=None)
    found: Any = trainer.predict(Wide(), loader(90, 1))
    assert [round(5 * batch["row"].item()) for batch in found] == list(range(90))
    assert [batch["wide"][-1] for batch in found] == [n % 3 for n in range(90)]
    for rank in (1, 2):
        grown = int((tmp_path / f"{rank}.txt").read_text(encoding="utf-8"))
        assert grown < 30 + 90, rank  # its own, and some parts of 16 MiB in their several forms


class Recording(Net):
    """Module that notes which samples it trains on, by epoch and batch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[tuple[int, int], list[int]]] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        samples = (batch[0][:, 0] * 5).round().int().tolist()
        self.seen.append(((self.current_epoch, batch_idx), samples))
        return self.layer(batch[0]).square().mean()


class Chosen(torch.utils.data.Sampler[list[int]]):
    """Batch sampler of the user's own."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size

    def __len__(self) -> int:
        return (self.n + self.size - 1) // self.size

    def __iter__(self) -> Any:
        order = torch.randperm(self.n).tolist()
        return iter([order[i : i + self.size] for i in range(0, self.n, self.size)])


class Labelled(DataLoader[Any]):
    """Loader with an argument of its own."""

    def __init__(self, label: str, n: int, **options: Any) -> None:
        self.label = label
        super().__init__(loader(n, 1).dataset, **options)


N = 37
KINDS: dict[str, Callable[[int, int], DataLoader[Any]]] = {
    "plain": lambda size, workers: loader(N, size, num_workers=workers),
    "shuffle": lambda size, workers: loader(N, size, num_workers=workers, shuffle=True),
    "weighted": lambda size, workers: loader(
        N, size, num_workers=workers, sampler=torch.utils.data.WeightedRandomSampler(torch.ones(N), N, False)
    ),
    "batch sampler": lambda size, workers: DataLoader(
        loader(N, 1).dataset, batch_sampler=Chosen(N, size), num_workers=workers
    ),
    "subclass": lambda size, workers: Labelled("a", N, batch_size=size, shuffle=True, num_workers=workers),
    "distributed": lambda size, workers: loader(
        N,
        size,
        num_workers=workers,
        sampler=torch.utils.data.DistributedSampler(range(N), num_replicas=1, rank=0),  # type: ignore[arg-type]
    ),
}


def order(size: int, folder: Path, workers: int) -> Callable[[int], Any]:
    def job(rank: int) -> Any:
        found = {}
        for kind, make in KINDS.items():
            net = Recording()
            torch.manual_seed(3 + rank)
            trainer_of(size, folder, max_epochs=2).fit(net, make(8 // size, workers), loader(4, 1))
            found[kind] = net.seen
        return found

    return job


@pytest.mark.slow
def test_the_global_order_is_that_of_one_process(tmp_path: Path) -> None:
    """1, 2 and 4 ranks, with workers and without, train on the same global batches, each sample once an epoch."""
    alone = {workers: on(1, order(1, tmp_path, workers))[0] for workers in (0, 2)}
    # A sampler of one's own that draws from the global generator is in torch's own loop another one with workers.
    assert {k: v for k, v in alone[0].items() if k != "batch sampler"} == {
        k: v for k, v in alone[2].items() if k != "batch sampler"
    }
    for workers, wanted in alone.items():
        for size in (2, 4):
            ranks = on(size, order(size, tmp_path, workers))
            for kind in KINDS:
                together: dict[tuple[int, int], list[int]] = {}
                for rank in ranks:
                    for place, samples in rank[kind]:
                        batch = together.setdefault(place, [])
                        batch += [sample for sample in samples if sample not in batch]
                assert together == dict(wanted[kind]), (kind, workers, size)
                assert sorted(i for place in together if not place[0] for i in together[place]) == list(range(N))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    n=st.integers(1, 33), size=st.integers(1, 4), batch=st.integers(1, 9), every=st.booleans(), loaders=st.booleans()
)
def test_shares_of_an_evaluation_are_its_samples(n: int, size: int, batch: int, every: bool, loaders: bool) -> None:
    """Whatever length, ranks and batch size, the ranks' own batches hold each sample once, and weights count them."""
    from lt_core.data import Feed
    from lt_interface import World

    seen: list[int] = []
    data = DataLoader(range(n), batch)  # type: ignore[arg-type]
    rounds = set()
    for rank in range(size):
        world = World(rank, size, data_rank=rank, data_size=size)
        feed = Feed([data, data] if loaders else data, stage="test", world=world, shadows=every)
        count = 0
        for samples, _, number in feed.epoch(0):
            count += 1
            if feed.weight and not number:
                seen += samples.tolist()
        rounds.add(count)
    assert sorted(seen) == list(range(n))
    assert not every or len(rounds) == 1
