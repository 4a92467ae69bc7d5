"""Train and evaluate on two real ranks over data of which only the order is known: no sample twice, no hang."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gathering import GatheringSum
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer, seed_everything
from lt_core.callbacks import ModelCheckpoint
from lt_core.data import CombinedLoader
from lt_interface import ConfigError
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher


class Net(LightningModule):
    """Regression that remembers the samples it saw, and which batches were the last of their epoch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Linear(1, 1)
        self.seen: list[list[int]] = []
        self.validated: list[int] = []
        self.evaluated: list[int] = []
        self.lasts: list[int] = []
        self.stepped: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        ids = batch[0] if isinstance(batch, list | tuple) else batch
        self.seen.append(ids.tolist())
        if self.trainer.is_last_batch:
            self.lasts.append(batch_idx)
        return self.loss(ids)

    def loss(self, ids: Any) -> Any:
        x = ids.float().reshape(-1, 1) / 50
        return nn.functional.mse_loss(self.layers(x), 2 * x)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.stepped.append(len(self.seen))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Validated(Net):
    """The same, with validation."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated.extend(batch.tolist())
        self.log("val", self.loss(batch), sync_dist=True)

    def on_validation_start(self) -> None:
        self.validated.append(len(self.seen))


class Numbers(IterableDataset[int]):
    """The numbers of a range, shared among workers."""

    def __init__(self, start: int, stop: int, shuffles: bool = False) -> None:
        self.start, self.stop, self.shuffles = start, stop, shuffles

    def __iter__(self) -> Iterator[int]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        order = range(self.start, self.stop)
        if self.shuffles:
            order = (torch.randperm(self.stop - self.start) + self.start).tolist()
        yield from list(order)[worker::workers]


def stream(start: int, stop: int, batch: int = 2, **options: Any) -> DataLoader[Any]:
    return DataLoader(Numbers(start, stop, options.pop("shuffles", False)), batch, **options)


def trainer_of(size: int, root: Any, **flags: Any) -> Trainer:
    quiet = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    strategy = {"strategy": DDPStrategy()} if size > 1 else {}
    given = {"accelerator": "cpu", "devices": size, "launcher": ReferenceLauncher(), "num_sanity_val_steps": 0, **quiet}
    return Trainer(**{**given, **strategy, "default_root_dir": root, "max_epochs": 1, **flags})


def weights(module: nn.Module) -> list[float]:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()]).tolist()


def on_two(job: Callable[[int], Any], timeout: float = 60.0) -> list[Any]:
    Net().configure_optimizers()  # what ranks need is imported once, before they are forked
    return run_ranks(job, timeout=timeout)


def fit(rank: int, root: Any, data: Any, val: Any = None, seed: int = 3, **flags: Any) -> Net:
    net = Net() if val is None else Validated()
    seed_everything(seed, verbose=False)
    trainer_of(2, root, **flags).fit(net, data, val)
    return net


SAME: dict[str, Callable[[], Any]] = {
    "iterable": lambda: stream(0, 24),
    "two workers": lambda: stream(0, 24, num_workers=2),
    "list": lambda: list(torch.arange(24).reshape(12, 2)),
    "function": lambda: lambda: iter(torch.arange(24).reshape(12, 2)),
}


def test_what_all_ranks_give_alike_is_dealt_batch_by_batch(tmp_path: Any) -> None:
    """Where the ranks' first batches are equal, each takes every second one, in each epoch."""
    found = on_two(lambda rank: {kind: fit(rank, tmp_path, SAME[kind](), max_epochs=2).seen for kind in SAME})
    for kind in SAME:
        loader = stream(0, 24, num_workers=2) if kind == "two workers" else SAME["list"]()
        everything = [batch.tolist() for batch in loader]
        assert [found[0][kind], found[1][kind]] == [everything[::2] * 2, everything[1::2] * 2], kind


class Sized(Numbers):
    """Numbers of a known length, whose order comes from a generator of its own."""

    def __init__(self, start: int, stop: int, shuffles: bool = False) -> None:
        super().__init__(start, stop, shuffles)
        self.generator, self.passes = torch.Generator().manual_seed(4), 0

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[int]:
        self.passes += 1
        order = torch.randperm(len(self), generator=self.generator) + self.start + 1000 * self.passes
        yield from (order + int(torch.randint(5, ())) if self.shuffles else order).tolist()


class Asking(Net):
    """The same, asking in `configure_optimizers` how many steps there will be."""

    asks = True

    def configure_optimizers(self) -> Any:
        self.estimate = self.trainer.estimated_stepping_batches if self.asks else None
        return super().configure_optimizers()


ESTIMATED: dict[str, tuple[Callable[[int], Any], int]] = {
    "iterable": (lambda rank: DataLoader(Sized(0, 24), 2), 12),
    "drawing": (lambda rank: DataLoader(Sized(0, 24, shuffles=True), 2), 12),
    "last global batch": (lambda rank: DataLoader(Sized(0, 25), 2), 14),
    "drop_last": (lambda rank: DataLoader(Sized(0, 27), 2, drop_last=True), 12),
    "list": (lambda rank: list(torch.arange(24).reshape(12, 2)), 12),
    "sharded": (lambda rank: DataLoader(Sized(100 * rank, 100 * rank + 24), 2), 24),
    "beside another": (lambda rank: [DataLoader(Sized(0, 24), 2), list(torch.arange(8))], 12),
}


def test_steps_are_estimated_for_the_rank(tmp_path: Any) -> None:
    """The number of steps is known in `configure_optimizers` for data that is dealt, and asking changes no batch."""

    def job(rank: int) -> Any:
        found = {}
        for kind, (make, _) in ESTIMATED.items():
            nets = []
            for Asking.asks in (True, False):
                seed_everything(3 + rank, verbose=False)
                nets.append(Asking())
                trainer_of(2, tmp_path, max_epochs=2).fit(nets[-1], make(rank))
            found[kind] = nets[0].estimate, len(nets[0].stepped), nets[0].seen == nets[1].seen
        return found

    for found in on_two(job, timeout=120):
        assert found == {kind: (steps, steps, True) for kind, (_, steps) in ESTIMATED.items()}


def batches_of(numbers: range, batch: int) -> list[Any]:
    return [torch.tensor(numbers[i : i + batch]) for i in range(0, len(numbers), batch)]


WHOLE: dict[str, Callable[[range, int], Any]] = {
    "iterable": lambda numbers, batch: stream(0, len(numbers), batch),
    "sized": lambda numbers, batch: DataLoader(Sized(0, len(numbers)), batch),
    "list": batches_of,
    "function": lambda numbers, batch: lambda: iter(batches_of(numbers, batch)),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_the_last_samples_of_a_stream_are_trained_as_one_process_trains_them(kind: str, tmp_path: Any) -> None:
    """Weights and validation are those of one process with the global batch, whatever is left at the stream's end."""
    lengths = (1, 3, 9, 12, 14, 15) if kind in ("iterable", "sized") else (3, 12, 15)  # lists are of whole batches
    cases = [(n, accumulate) for n in lengths for accumulate in (1, 2)]

    def fitted(size: int) -> list[Any]:
        found = []
        for n, accumulate in cases:
            net = Validated()
            seed_everything(3, verbose=False)
            trainer = trainer_of(size, tmp_path, max_epochs=2, accumulate_grad_batches=accumulate)
            numbers, batch = range(n), 6 // size
            trainer.fit(net, WHOLE[kind](numbers, batch), WHOLE[kind](numbers, batch))
            found.append((weights(net), float(trainer.callback_metrics["val"]), trainer.global_step))
        return found

    alone = fitted(1)
    for found in on_two(lambda rank: fitted(2), timeout=200):
        for case, one, two in zip(cases, alone, found, strict=True):
            assert two[0] == pytest.approx(one[0], rel=1e-6, abs=1e-6), case
            assert two[1:] == (pytest.approx(one[1], rel=1e-6, abs=1e-6), one[2]), case


UNEVEN: dict[str, Callable[[int], Any]] = {
    "iterable": lambda rank: stream(100 * rank, 100 * rank + [10, 15][rank]),
    "two workers": lambda rank: stream(100 * rank, 100 * rank + [10, 14][rank], num_workers=2),
    "function": lambda rank: lambda: (torch.tensor([100 * rank + i]) for i in range([7, 5][rank])),
}


@pytest.mark.parametrize("kind", UNEVEN)
def test_ranks_end_with_the_shortest(kind: str, tmp_path: Any) -> None:
    """Data that differs by rank is not cut; the epoch ends at one step for all, with the last window closed."""

    def job(rank: int) -> Any:
        nets = [
            fit(rank, tmp_path, UNEVEN[kind](rank), max_epochs=2, accumulate_grad_batches=accumulate)
            for accumulate in (1, 2, 3)
        ]
        return [(len(net.seen), net.lasts, net.stepped, weights(net), net.seen[0][0] // 100) for net in nets]

    steps = 6 if kind == "two workers" else 5
    for accumulate, first, second in zip((1, 2, 3), *on_two(job), strict=True):
        assert first[:4] == second[:4]
        assert first[0] == 2 * steps
        assert first[1] == [steps - 1] * 2
        ends = [*range(accumulate, steps, accumulate), steps]
        assert first[2] == ends + [steps + end for end in ends]
        assert (first[4], second[4]) == (0, 1)


FLAGS: dict[str, dict[str, Any]] = {
    "limit": {"limit_train_batches": 3},
    "limit beyond": {"limit_train_batches": 6, "accumulate_grad_batches": 2},
    "validation inside": {"val_check_interval": 2},
    "validation inside a window": {"val_check_interval": 4, "accumulate_grad_batches": 3},
    "max_steps": {"max_steps": 7, "max_epochs": -1},
    "across epochs": {"val_check_interval": 3, "check_val_every_n_epoch": None, "max_epochs": 2},
}


def test_flags_hold_where_ranks_end_with_the_shortest(tmp_path: Any) -> None:
    """Limits, validation inside an epoch and max_steps count the steps that all ranks take together."""

    def job(rank: int) -> Any:
        found = {}
        for kind in ("iterable", "function"):
            for name, flags in FLAGS.items():
                net = fit(rank, tmp_path, UNEVEN[kind](rank), stream(0, 6), **flags)
                found[kind, name] = len(net.seen), net.lasts, net.validated, net.stepped, weights(net)
        return found

    first, second = on_two(job, timeout=120)
    assert first == second
    for kind in ("iterable", "function"):
        found = {name: first[kind, name] for name in FLAGS}
        assert found["limit"][:3] == (3, [2], [3])
        assert found["limit beyond"][:4] == (5, [4], [5], [2, 4, 5])
        assert found["validation inside"][:3] == (5, [4], [2, 4])
        assert found["validation inside a window"][2] == [5]
        assert found["max_steps"][0] == 7
        assert found["across epochs"][2] == [3, 6, 9]


def resumed(rank: int, root: Any, data: Any, path: str | None) -> Net:
    """Return the network after two epochs, saved after the third step, or resumed from there."""
    net = Net()
    seed_everything(3 + rank, verbose=False)
    saver = ModelCheckpoint(root, "{step}", every_n_train_steps=3, save_top_k=-1)
    trainer = trainer_of(2, root, max_epochs=2, callbacks=[saver], enable_checkpointing=True)
    trainer.fit(net, data, ckpt_path=path)
    return net


class Kept(Numbers):
    """Numbers whose place is kept."""

    def __init__(self, start: int, stop: int) -> None:
        super().__init__(start, stop)
        self.at, self.given = 0, 0

    def __iter__(self) -> Iterator[int]:
        for number in range(self.start + self.at, self.stop):
            self.at += 1
            self.given += 1
            yield number
        self.at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


RESUMED: dict[str, Callable[[int], Any]] = {
    "dealt": lambda rank: stream(0, 22),
    "dealt and shuffled": lambda rank: stream(0, 22, shuffles=True),
    "dealt by two workers": lambda rank: stream(0, 24, num_workers=2),
    "dealt and kept": lambda rank: DataLoader(Kept(0, 22), 2),
    "sharded": UNEVEN["iterable"],
    "sharded lists": lambda rank: [torch.tensor([100 * rank + i]) for i in range(5)],
    "sharded and kept": lambda rank: DataLoader(Kept(100 * rank, 100 * rank + [10, 15][rank]), 2),
}


@pytest.mark.filterwarnings("ignore:Resuming inside an epoch")
def test_ranks_resume_inside_an_epoch_of_unknown_length(tmp_path: Any) -> None:
    """Each rank goes on with the batches and weights of the uninterrupted run, whatever keeps its place."""

    def job(rank: int) -> Any:
        found = {}
        for name, make in RESUMED.items():
            root = tmp_path / name.replace(" ", "_")
            whole = resumed(rank, root, make(rank), None)
            again = resumed(rank, root, make(rank), str(root / "step=3.ckpt"))
            found[name] = whole.seen, again.seen, weights(whole), weights(again), whole.lasts, again.lasts
        return found

    for found in on_two(job, timeout=120):
        for name, (whole, again, weight, other, lasts, lasts_again) in found.items():
            assert again == whole[3:], name
            assert other == weight, name
            assert lasts_again == lasts, name
            if name == "dealt and shuffled":
                assert whole[:6] != whole[6:]


class Evaluated(Validated):
    """The same, with a metric object, and a value that the step returns for logging."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered, self.forwards = GatheringSum(), 0

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.forwards += 1
        self.log("mean", batch.float().mean(), sync_dist=True)
        self.gathered.update(batch.tolist())
        self.log("object", self.gathered)
        return {"val_returned": 2 * batch.float().mean()}

    def on_validation_batch_end(self, outputs: Any, batch: Any, *_: Any) -> None:
        self.evaluated.extend(batch.tolist())


class Meeting(DDPStrategy):
    """Strategy whose forward is collective: each one meets the other ranks'."""

    collective_forward = True

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        engine: Any = super().engine(*args, **kwargs)
        engine.before_forward = lambda: self.collectives.any(False)
        return engine


EVALUATED: dict[str, Callable[[int], Any]] = {
    "dealt": lambda rank: stream(0, 13),
    "dealt, fewer than ranks": lambda rank: stream(0, 2),
    "dealt list": lambda rank: [torch.tensor([i]) for i in range(5)],
    "sharded": lambda rank: stream(100 * rank, 100 * rank + [5, 13][rank]),
    "sharded lists": lambda rank: [torch.tensor([100 * rank + i]) for i in range([5, 2][rank])],
    "sharded, none on a rank": lambda rank: lambda: (torch.tensor([i]) for i in range([0, 3][rank])),
}
SEEN = {
    "dealt": range(13),
    "dealt, fewer than ranks": range(2),
    "dealt list": range(5),
    "sharded": [*range(5), *range(100, 113)],
    "sharded lists": [*range(5), 100, 101],
    "sharded, none on a rank": range(3),
}


@pytest.mark.parametrize("strategy", [DDPStrategy, Meeting])
def test_ranks_evaluate_each_sample_once(strategy: Any, tmp_path: Any) -> None:
    """Whatever the ranks' lengths, each sample is evaluated once and no rank waits for another one's batch."""

    def job(rank: int) -> Any:
        found = {}
        for name, make in EVALUATED.items():
            net = Evaluated()
            trainer = trainer_of(2, tmp_path, strategy=strategy())
            (metrics,) = trainer.validate(net, make(rank), verbose=False)
            found[name] = net.evaluated, net.forwards, metrics
        return found

    first, second = on_two(job)
    for name, wanted in SEEN.items():
        assert sorted(first[name][0] + second[name][0]) == sorted(wanted), name
        assert (
            first[name][2]
            == second[name][2]
            == {
                "mean": pytest.approx(sum(wanted) / len(wanted)),
                "val_returned": pytest.approx(2 * sum(wanted) / len(wanted)),
                "object": sum(wanted),
            }
        ), name
        assert strategy is DDPStrategy or first[name][1] == second[name][1]


def test_a_rank_takes_all_that_it_gives_where_nothing_is_shared(tmp_path: Any) -> None:
    """With use_distributed_sampler=False equal batches are not dealt, in training and in evaluation."""

    def job(rank: int) -> Any:
        net = fit(rank, tmp_path, stream(0, 8), stream(0, 6), use_distributed_sampler=False)
        return [i for batch in net.seen for i in batch], net.evaluated

    assert on_two(job) == [(list(range(8)), list(range(6)))] * 2


def test_the_log_says_once_what_was_chosen(tmp_path: Any) -> None:
    """Rank 0 reports how data of unknown kind is taken, how to change it, and what was left out."""

    def job(rank: int) -> Any:
        found = {}
        for name, data in {"dealt": stream(0, 14, drop_last=True), "sharded": UNEVEN["function"](rank)}.items():
            lines: list[str] = []
            handler = logging.Handler()
            handler.emit = lambda record, lines=lines: lines.append(record.getMessage())  # type: ignore[method-assign, misc]
            logger = logging.getLogger("lt_core")
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            fit(rank, tmp_path, data, max_epochs=2)
            logger.removeHandler(handler)
            found[name] = [line for line in lines if "train_dataloaders" in line or "train_dataloader" in line]
        return found

    first, second = on_two(job)
    assert second == {"dealt": [], "sharded": []}
    assert len(first["dealt"]) == len(first["sharded"]) == 2
    assert "use_distributed_sampler=False" in first["dealt"][0]
    assert "already" in first["sharded"][0]
    assert all("at least 1 batches" in found[1] for found in first.values())


def test_a_rank_without_a_batch_ends_the_fit_on_all(tmp_path: Any) -> None:
    """A training epoch that is empty on one rank is one error on every rank."""

    def job(rank: int) -> Any:
        with pytest.raises(ConfigError, match="must have a batch"):
            fit(rank, tmp_path, lambda: (torch.tensor([i]) for i in range([3, 0][rank])))
        return True

    assert on_two(job) == [True, True]


@pytest.mark.parametrize("mode", ["min_size", "max_size_cycle", "max_size"])
def test_loaders_of_known_and_unknown_length_walk_together(mode: Any, tmp_path: Any) -> None:
    """A sized loader beside a stream ends each epoch at one step for all ranks, also where ranks begin it anew."""

    class Both(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first, other = batch
            self.seen.append([int(x[0]) if x is not None else -1 for x in batch])
            return self.loss(other if first is None else first)

    def job(rank: int) -> Any:
        found = []
        for length in ([10, 14], [5, 5], [16, 10]):
            net = Both()
            seed_everything(3 + rank, verbose=False)
            sized = DataLoader(torch.arange(12), 2, shuffle=True)  # type: ignore[arg-type]
            data = CombinedLoader([sized, stream(100 * rank, 100 * rank + length[rank], 1)], mode)
            trainer_of(2, tmp_path, max_epochs=2).fit(net, data)
            found.append((len(net.seen), weights(net)))
        return found

    first, second = on_two(job, timeout=120)
    assert first == second
    shortest = {"min_size": [3, 3, 3], "max_size_cycle": [10, 5, 10], "max_size": [10, 5, 10]}[mode]
    assert [steps for steps, _ in first] == [2 * steps for steps in shortest]


@pytest.mark.parametrize("limit", [None, 7])
def test_ranks_train_on_a_dealt_stream_as_one_process_does(limit: int | None, tmp_path: Any) -> None:
    """Weights are those of one process with larger batches; a short last window, known or not, has its own mean."""

    def job(rank: int) -> Any:
        flags = {"max_epochs": 2, "limit_train_batches": limit, "gradient_clip_val": 0.5}
        return [
            weights(fit(rank, tmp_path, stream(0, 20), accumulate_grad_batches=accumulate, **flags))
            for accumulate in (1, 2, 3)
        ]

    def alone(accumulate: int) -> list[float]:
        net = Net()
        data = list(torch.arange(20).reshape(5, 4))
        flags = {"max_epochs": 2, "gradient_clip_val": 0.5, "accumulate_grad_batches": accumulate}
        trainer_of(1, tmp_path, **flags).fit(net, data)
        return weights(net)

    found = on_two(job)
    assert found[0] == found[1]
    for accumulate, parameters in zip((1, 2, 3), found[0], strict=True):
        assert parameters == pytest.approx(alone(accumulate), abs=1e-6)


def test_a_short_window_before_the_limit_has_its_own_mean(tmp_path: Any) -> None:
    """Data that ends before limit_train_batches trains as a list of these batches does, with a short last window."""
    found = []
    batches = list(torch.arange(20).reshape(5, 4))
    for data, limit in ((batches, None), (lambda: iter(batches), 6), (lambda: iter(batches), None)):
        net = Net()
        flags = {"accumulate_grad_batches": 2, "limit_train_batches": limit, "max_epochs": 2}
        trainer_of(1, tmp_path, **flags).fit(net, data)
        found.append(weights(net))
    assert found[1] == pytest.approx(found[0], abs=1e-7)
    assert found[2] == pytest.approx(found[0], abs=1e-7)
