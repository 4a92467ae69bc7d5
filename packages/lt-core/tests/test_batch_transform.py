"""Change batches on the device by a callback: which of them, with which random numbers, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core import LightningModule, Trainer
from lt_core.callbacks import BatchTransform, ModelCheckpoint
from lt_interface.errors import ConfigError, MisconfigurationException

X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12)


class Net(LightningModule):
    """Module that keeps what each step was given, and draws in training."""

    logs = 0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(2, 1)
        self.seen: dict[str, list[Any]] = {"train": [], "validate": [], "test": [], "predict": []}
        self.drawn: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.seen["train"].append(batch)
        self.drawn.append(torch.rand(()).item())
        for number in range(self.logs):
            self.log(f"value {number}", float(batch_idx), on_step=True, on_epoch=True)
        return self.layer(torch.zeros(1, 2)).square().mean()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.seen["validate"].append(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"].append(batch)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen["predict"].append(batch)
        return batch_idx

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Noise(nn.Module):
    """Transform that draws from every generator there is, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.own = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        drawn = [torch.rand(()), random.random(), np.random.rand(), torch.rand((), generator=self.own)]
        return torch.stack([torch.as_tensor(one, dtype=torch.float32) for one in drawn]).expand(len(x), 4)


def noise(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1)


def pairs(**given: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), **{"batch_size": 4, **given})


def fit(*callbacks: Any, data: Any = None, module: Net | None = None, **flags: Any) -> Net:
    module = Net() if module is None else module
    trainer = Trainer(**{**QUIET, "max_epochs": 2, "limit_val_batches": 0, "callbacks": [*callbacks], **flags})
    torch.manual_seed(3)
    trainer.fit(module, pairs() if data is None else data)
    return module


def firsts(batches: list[Any]) -> list[Any]:
    return [batch[0].tolist() for batch in batches]


class Pair(NamedTuple):
    """Batch with names."""

    x: Any
    y: Any


@dataclass
class Record:
    """Batch with attributes."""

    x: Any
    y: Any


FORMS: list[tuple[Any, Any]] = [
    ((X, Y), 0),
    ([X, Y], -2),
    ({"x": X, "y": Y}, "x"),
    (Pair(X, Y), "x"),
    (Pair(X, Y), 0),
    (Record(X, Y), "x"),
]


@pytest.mark.parametrize(("batch", "key"), FORMS, ids=lambda value: type(value).__name__)
def test_a_part_of_a_batch_is_changed(batch: Any, key: Any) -> None:
    """What the key names is changed and the rest stays, in a batch of the same kind; the loader's stays."""
    module = fit(BatchTransform(lambda x: x + 1, keys=key), data=[batch], max_epochs=1)
    (seen,) = module.seen["train"]
    assert type(seen) is type(batch)
    x, y = (seen["x"], seen["y"]) if isinstance(seen, dict) else (seen.x, seen.y) if hasattr(seen, "x") else seen
    assert torch.equal(x, X + 1)
    assert y is Y
    assert torch.equal(X, torch.arange(24.0).reshape(12, 2))


def test_several_parts_and_whole_batches_are_changed() -> None:
    """Several keys become several arguments; without keys the function has the whole batch, and may change its form."""
    mixed = fit(BatchTransform(lambda x, y: (x * 2, y + 100), keys=(0, 1)), max_epochs=1).seen["train"]
    assert [(x.tolist(), y.tolist()) for x, y in mixed] == [
        ((X[i : i + 4] * 2).tolist(), (Y[i : i + 4] + 100).tolist()) for i in (0, 4, 8)
    ]
    named = fit(BatchTransform(lambda batch: {"x": batch[0]}), max_epochs=1).seen["train"]
    assert [list(batch) for batch in named] == [["x"]] * 3


def test_transforms_follow_one_another_behind_the_transfer_hooks() -> None:
    """They come in the callbacks' order, behind on_after_batch_transfer and before on_train_batch_start."""
    order: list[str] = []

    class Hooked(Net):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            order.append("transfer")
            return batch

        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            order.append("start")

    def note(name: str) -> Callable[[Any], Any]:
        return lambda batch: (order.append(name), batch)[1]

    first, second = BatchTransform(note("a")), BatchTransform(note("b"))
    fit(first, second, module=Hooked(), data=[torch.ones(2, 2)], max_epochs=1)
    assert order == ["transfer", "a", "b", "start"]


def test_each_stage_has_its_own() -> None:
    """A transform acts in the stages that it names and in no other one, in validation inside fit, too."""
    callbacks = [BatchTransform(lambda b, n=n: [b[0] * 0 + n, b[1]], s) for n, s in enumerate(Net().seen, 1)]
    for named in (callbacks, callbacks[:1], [BatchTransform(lambda b: [b[0] * 0 + 7, b[1]], ("test", "predict"))]):
        module = Net()
        trainer = Trainer(**{**QUIET, "max_epochs": 1, "callbacks": named})
        trainer.fit(module, pairs(), pairs())
        trainer.test(module, pairs(), verbose=False)
        trainer.predict(module, pairs(), return_predictions=False)
        for number, (stage, seen) in enumerate(module.seen.items(), 1):
            acts = [one for one in named if stage in one.stages]
            expected = torch.full((4, 2), 7.0 if len(named) == 1 and stage != "train" else float(number))
            assert len(seen) in (3, 5)  # the sanity check validates two batches
            for (x, _), original in zip(seen[-3:], X.split(4), strict=True):
                assert torch.equal(x, expected if acts else original)


def test_numbers_are_drawn_anew_for_each_batch_and_alike_in_each_run() -> None:
    """Each batch of each epoch has its own numbers, from all generators; another run has the same, another seed not."""
    first, again = firsts(fit(BatchTransform(Noise(), keys=0)).seen["train"]), Net()
    assert len({str(x) for x in first}) == 6
    assert all(len({str(x[0][i]) for x in first}) == 6 for i in range(4))
    again.logs = 3  # however much is logged
    assert firsts(fit(BatchTransform(Noise(), keys=0), module=again, log_every_n_steps=1).seen["train"]) == first
    other = Net()
    trainer = Trainer(**QUIET, max_epochs=2, limit_val_batches=0, callbacks=[BatchTransform(Noise(), keys=0)])
    torch.manual_seed(4)
    trainer.fit(other, pairs())
    assert firsts(other.seen["train"])[0] != first[0]


def test_a_transform_leaves_the_runs_random_numbers_alone() -> None:
    """The steps of a run draw the same with transforms as without, and two alike transforms draw different numbers."""
    plain, one = fit(), fit(BatchTransform(noise, keys=0))
    assert one.drawn == plain.drawn
    two = fit(BatchTransform(noise, keys=0), BatchTransform(lambda x: torch.cat([x, noise(x)], 1), keys=0))
    assert two.drawn == plain.drawn
    (x, _), *_ = two.seen["train"]
    assert x[0, 0] != x[0, 1]
    assert x[:, :1].tolist() == one.seen["train"][0][0].tolist()


@pytest.mark.filterwarnings("ignore:.*callbacks that are not here")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumed_inside_an_epoch_draws_the_same(workers: int, tmp_path: Path) -> None:
    """Behind a checkpoint in mid-epoch all batches, the transform's state and the weights are those of a whole run."""
    data = pairs(batch_size=2, shuffle=True, num_workers=workers)
    whole, transform = fit(keep := BatchTransform(Noise(), keys=0), data=data), Noise()
    saver = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    fit(BatchTransform(Noise(), keys=0), saver, data=data, max_steps=5, enable_checkpointing=True)
    rest = Net()
    flags = {**QUIET, "max_epochs": 2, "limit_val_batches": 0}
    trainer = Trainer(**flags, callbacks=[BatchTransform(transform, keys=0)])
    trainer.fit(rest, data, ckpt_path=tmp_path / "epoch=0-step=4.ckpt")
    assert firsts(rest.seen["train"]) == firsts(whole.seen["train"])[4:]
    assert rest.drawn == whole.drawn[4:]
    assert transform.calls == keep.transform.calls == 12  # type: ignore[attr-defined]


def test_batches_of_several_evaluation_loaders_differ() -> None:
    """In evaluation each loader's batches have numbers of their own, the same in each validation of an epoch."""
    module = Net()
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[BatchTransform(noise, "validate", keys=0)])
    torch.manual_seed(3)
    trainer.validate(module, [pairs(), pairs()], verbose=False)
    seen = firsts(module.seen["validate"])
    assert len({str(x) for x in seen}) == 6
    trainer.validate(module, [pairs(), pairs()], verbose=False)
    assert firsts(module.seen["validate"]) == seen * 2


def shorter(batch: Any) -> Any:
    return [part[:3] for part in batch]


def shortens(batch: Any) -> Any:
    batch[0] = batch[0][:1]
    return batch


BAD: list[tuple[BatchTransform, str]] = [
    (BatchTransform(shortens), r"Got batch\[0\] of 1 samples, 4 before"),
    (BatchTransform(shorter), r"shorter\) in train: .*as many samples.* Got batch\[0\] of 3 samples, .*4 before"),
    (BatchTransform(lambda y: y.repeat(2), keys=1), r"Got batch\[1\] of 8 samples, 4 before"),
    (BatchTransform(lambda batch: {"x": batch[0][:1]}), r"Got batch\['x'\] of 1 samples, 4 before"),
    (BatchTransform(lambda batch: None), "Got None. Is a return missing"),
    (BatchTransform(lambda x: None, keys=0), "Got None. Is a return missing"),
    (BatchTransform(lambda x, y: x, keys=(0, 1)), "must return 2 values. Got 1."),
    (BatchTransform(noise, keys="image"), r"must have the keys \['image'\]. Got list with 0, 1. Correct keys"),
    (BatchTransform(noise, keys=2), r"must have the keys \[2\]"),
]


@pytest.mark.parametrize(("transform", "text"), BAD, ids=[text for _, text in BAD])
def test_what_changes_the_batch_size_is_refused_before_a_step(transform: BatchTransform, text: str) -> None:
    """A batch of another size, nothing, or other keys than the batch has, are one error before anything is trained."""
    module = Net()
    with pytest.raises(MisconfigurationException, match=text):
        fit(transform, module=module)
    assert module.seen["train"] == []


def test_arguments_are_checked_at_once() -> None:
    """A class, no function, an unknown stage and no stage at all are refused where the callback is made."""
    with pytest.raises(ConfigError, match=r"the class Noise. Write BatchTransform\(Noise\(\.\.\.\)\)"):
        BatchTransform(Noise)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*Got 3(.|\n)*no stage of that name. Got 'training'"):
        BatchTransform(3, "training")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no stage of that name"):
        BatchTransform(noise, ())
    for keys in ([], 1.5, [0, None]):
        with pytest.raises(ConfigError, match=r"these must be indexes, keys or names. Write keys="):
            BatchTransform(noise, keys=keys)  # type: ignore[arg-type]


def test_values_of_other_lengths_beside_the_samples_may_change() -> None:
    """Numbers and vectors that are no samples, such as mixing weights, count for nothing."""
    fit(BatchTransform(lambda b: {"x": b[0], "weight": torch.ones(()), "order": torch.arange(9)}), max_epochs=1)
    data = [{"x": X, "classes": torch.arange(5)}]
    fit(BatchTransform(lambda b: {**b, "classes": torch.arange(7)}), data=data, max_epochs=1)


def test_a_batch_that_the_loader_keeps_stays_as_it_is() -> None:
    """What a function puts into a dict or list of the loader's own is in the step's batch alone, epoch after epoch."""

    def add(batch: Any) -> Any:
        key = "x" if isinstance(batch, dict) else 0
        batch[key] = batch[key] + 1
        return batch

    for batch in ({"x": X, "y": Y}, [X, Y]):
        seen = fit(BatchTransform(add), data=[batch]).seen["train"]
        assert all(torch.equal(next(iter(leaves_of(one))), X + 1) for one in seen)
        assert next(iter(leaves_of(batch))) is X


def leaves_of(batch: Any) -> Any:
    return batch.values() if isinstance(batch, dict) else batch


def test_stages_are_kept_in_one_order() -> None:
    """In whatever collection stages are given, the callback is the same, so that its state is found again."""
    given: list[Any] = [{"test", "train", "predict"}, ["predict", "train", "test"], ("train", "test", "predict")]
    assert {BatchTransform(Noise(), stages).state_key for stages in given} == {
        BatchTransform(Noise(), given[2]).state_key
    }
