"""LightningDataModule: hooks, ready datasets, its text and its picture."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler

from lt_core.data import show as batch_picture
from lt_core.datamodule import LightningDataModule
from lt_core.demos import BoringDataModule, RandomDataset, RandomIterableDataset
from lt_core.hooks.table import overrides
from lt_interface.errors import ConfigError, MisconfigurationException

STAGES = ("train", "val", "test", "predict")


class Trainer:
    """Stand-in for a trainer that has loaded its data."""

    def __init__(self, datamodule: Any) -> None:
        self.datamodule = datamodule
        self.train_dataloader = DataLoader(RandomDataset(2, 12))
        self.val_dataloaders = [DataLoader(RandomDataset(2, 3)), DataLoader(RandomIterableDataset(2, 3))]
        self.test_dataloaders = self.predict_dataloaders = None


class Images(LightningDataModule):
    """Pictures whose dataset exists only after setup."""

    def __init__(self, shape: tuple[int, ...] = (1, 8, 8), dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.shape, self.dtype = shape, dtype

    def setup(self, stage: str) -> None:
        self.stage = stage
        self.x = (torch.rand(20, *self.shape) * 255).to(self.dtype)

    def train_dataloader(self) -> Any:
        return DataLoader(list(zip(self.x, torch.arange(20), strict=True)), batch_size=20)  # type: ignore[arg-type]


def test_defaults_and_names() -> None:
    """All documented names exist; the loaders of the base class say what to write."""
    data = LightningDataModule()
    assert data.name is None
    assert data.trainer is None
    assert data.prepare_data_per_node
    assert not data.allow_zero_length_dataloader_with_multiple_devices
    assert data.state_dict() == {}
    data.load_state_dict({})
    data.prepare_data()
    data.setup("fit")
    data.teardown("fit")
    data.on_exception(ValueError())
    assert data.on_before_batch_transfer(1, 0) == data.on_after_batch_transfer(1, 0) == 1
    assert data.transfer_batch_to_device([torch.ones(1)], torch.device("meta"), 0)[0].is_meta
    for stage in STAGES:
        with pytest.raises(MisconfigurationException, match=f"def {stage}_dataloader"):
            getattr(data, f"{stage}_dataloader")()


def test_trainer_is_weak_and_left_out_of_copies() -> None:
    """The trainer is held weakly, and pickles and copies are not attached."""
    data = BoringDataModule()
    trainer = Trainer(data)
    trainer.lock = sys.stdout  # type: ignore[attr-defined]
    data.trainer = trainer  # type: ignore[assignment]
    assert data.trainer is data._trainer_ref()  # type: ignore[misc]
    assert isinstance(data.trainer, Trainer)
    for twin in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert twin.trainer is None
    del trainer
    assert data.trainer is None


def test_works_without_super_init() -> None:
    """A data module that forgets super().__init__() works."""

    class Forgets(LightningDataModule):
        def __init__(self, size: int) -> None:
            self.save_hyperparameters()

    data = Forgets(3)
    assert data.hparams.size == 3
    assert data.trainer is None
    assert "None" in str(data)


# ---------------------------------------------------------------- from_datasets


def test_from_datasets_makes_loaders() -> None:
    """Each given dataset gets a loader; only training data is shuffled; hooks not given stay missing."""
    data = LightningDataModule.from_datasets(RandomDataset(2, 8), RandomDataset(2, 6), batch_size=4)
    train, val = data.train_dataloader(), data.val_dataloader()
    assert (len(train), len(val)) == (2, 2)
    assert isinstance(train.sampler, RandomSampler)
    assert isinstance(val.sampler, SequentialSampler)
    assert overrides(data, "train_dataloader")
    assert not overrides(data, "test_dataloader")
    with pytest.raises(MisconfigurationException):
        data.test_dataloader()


def test_from_datasets_takes_several_and_iterables() -> None:
    """Several datasets give several loaders, by list, generator or dict; iterable datasets are not shuffled."""
    sets = [RandomDataset(2, 4), RandomDataset(2, 6)]
    by_name: Any = {"a": sets[0]}
    data = LightningDataModule.from_datasets(
        train_dataset=RandomIterableDataset(2, 5),
        val_dataset=(d for d in sets),
        test_dataset=by_name,
        predict_dataset=sets,
        batch_size=2,
    )
    assert sum(len(b) for b in data.train_dataloader()) == 5
    for _ in range(2):  # a generator is read once, the hook is called often
        assert [len(loader) for loader in data.val_dataloader()] == [2, 3]
    assert list(data.test_dataloader()) == ["a"]
    assert len(data.predict_dataloader()) == 2


def test_from_datasets_builds_the_subclass() -> None:
    """batch_size and num_workers reach a class that takes them, other arguments always."""

    class Takes(LightningDataModule):
        def __init__(self, batch_size: int, folder: str) -> None:
            super().__init__()
            self.seen = (batch_size, folder)

    class TakesAny(LightningDataModule):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__()
            self.seen = kwargs

    assert Takes.from_datasets(batch_size=3, folder="x").seen == (3, "x")
    assert TakesAny.from_datasets(batch_size=3, num_workers=1).seen == {"batch_size": 3, "num_workers": 1}
    assert pickle.loads(pickle.dumps(LightningDataModule.from_datasets(RandomDataset(2, 4)))).train_dataloader()


# ---------------------------------------------------------------- str


def test_str_runs_no_hook() -> None:
    """The text has the sizes that are known, and calls no hook to find others."""

    class Loud(LightningDataModule):
        def train_dataloader(self) -> Any:
            raise AssertionError("called")

    assert str(Loud()) == "\n".join(
        [
            "{Train dataloader: not loaded yet}",
            "{Val dataloader: None}",
            "{Test dataloader: None}",
            "{Predict dataloader: None}",
        ]
    )
    data = LightningDataModule.from_datasets(
        RandomDataset(2, 8),
        [RandomDataset(2, 6), RandomIterableDataset(2, 3)],
        test_dataset=RandomIterableDataset(2, 3),
    )
    assert str(data).splitlines() == [
        "{Train dataloader: size=8}",
        "{Val dataloader: 1. size=6; 2. size=NA}",
        "{Test dataloader: size=NA}",
        "{Predict dataloader: None}",
    ]


def test_str_of_an_attached_data_module() -> None:
    """When a trainer has loaded the data, the text has their sizes."""
    data = BoringDataModule()
    trainer = Trainer(data)
    data.trainer = trainer  # type: ignore[assignment]
    assert str(data).splitlines()[:3] == [
        "{Train dataloader: size=12}",
        "{Val dataloader: 1. size=3; 2. size=NA}",
        "{Test dataloader: not loaded yet}",
    ]


# ---------------------------------------------------------------- show_batch


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((1, 8, 8), torch.float32),
        ((3, 8, 8), torch.uint8),
        ((8, 6, 3), torch.uint8),
        ((8, 6, 1), torch.float32),
        ((4, 8, 8), torch.float64),
    ],
)
def test_show_batch_draws_images(tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A batch of images is drawn as a grid without axes, with labels as captions, and written."""
    path = tmp_path / "batch.png"
    figure = Images(shape, dtype).show_batch(n=5, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    drawn: list[Any] = [ax for ax in figure.axes if ax.images]  # type: ignore[union-attr]
    assert [ax.get_title() for ax in drawn] == ["0", "1", "2", "3", "4"]
    assert not any(ax.axison for ax in figure.axes)  # type: ignore[union-attr]
    assert 1 not in shape or {ax.images[0].get_cmap().name for ax in drawn} == {"gray"}
    assert all(0 <= ax.images[0].get_array().min() <= ax.images[0].get_array().max() <= 1 for ax in drawn)


def test_show_batch_leaves_pictures_between_0_and_1_as_they_are() -> None:
    """Only values outside are stretched: a dark picture stays dark."""
    dark = torch.linspace(0, 0.5, 64).reshape(1, 1, 8, 8)
    for pictures, high in ((dark, 0.5), (dark - 0.1, 1.0), (dark * 4, 1.0)):
        figure: Any = batch_picture.show(pictures)
        array = figure.axes[0].images[0].get_array()
        assert (float(array.min()), float(array.max())) == (0.0, high)


def test_show_batch_describes_the_rest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Any other batch is shown as a table of names, shapes, types and ranges."""
    table = BoringDataModule().show_batch("val")
    assert capsys.readouterr().out == f"{table}\n"
    assert repr(table) == str(table)
    lines = str(table).splitlines()
    assert lines[0] == "BoringDataModule, val"
    assert lines[1].split() == ["name", "shape", "dtype", "min", "max", "mean"]
    assert lines[2].split()[:5] == ["batch", "1", "x", "32", "float32"]
    BoringDataModule().show_batch("test", path=tmp_path / "t.txt")
    assert (tmp_path / "t.txt").read_text().startswith("BoringDataModule, test")


@dataclass
class Pair:
    x: torch.Tensor
    y: Any


def test_table_walks_structures() -> None:
    """Tensors are found in dicts, lists and dataclasses, with their path; text is passed over."""
    batch = {"a": [torch.arange(4.0), "text"], "pair": Pair(torch.ones(2, dtype=torch.int64), torch.ones(1).numpy())}
    lines = str(batch_picture.show(batch)).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["batch['a'][0]", "batch['pair'].x", "batch['pair'].y"]
    assert lines[1].split()[1:] == ["4", "float32", "0", "3", "1.5"]
    assert str(batch_picture.show(["a"])) == "list: no tensors"
    assert "0 x 2" in str(batch_picture.show(torch.ones(0, 2)))


def test_show_batch_sets_up_only_outside_a_run() -> None:
    """Outside a run data is prepared and set up first; in a run it is not."""
    data = Images()
    data.show_batch()
    assert data.stage == "fit"
    x = data.x
    trainer = Trainer(data)
    data.trainer = trainer  # type: ignore[assignment]
    data.show_batch()
    assert data.x is x


def test_show_batch_leaves_random_states() -> None:
    """Showing a batch changes no random state."""
    data = LightningDataModule.from_datasets(RandomDataset(2, 8), batch_size=4)
    before = torch.get_rng_state(), random.getstate()
    data.show_batch()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_show_batch_takes_the_first_of_several_loaders() -> None:
    """Of nested loaders the first is shown; a list of batches is a loader."""

    class Several(LightningDataModule):
        def train_dataloader(self) -> Any:
            return {"a": [DataLoader(RandomDataset(5, 4)), DataLoader(RandomDataset(2, 4))]}

        def val_dataloader(self) -> Any:
            return [torch.ones(3, 7), torch.ones(3, 7)]

        def test_dataloader(self) -> Any:
            return []

    assert "1 x 5" in str(Several().show_batch())
    assert "3 x 7" in str(Several().show_batch("validate"))
    with pytest.raises(ConfigError, match="an empty loader"):
        Several().show_batch("test")


def test_show_batch_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown stage names the nearest; without matplotlib the command to install it is shown."""
    with pytest.raises(ConfigError, match=r'one of train, val, test, predict\. Did you mean "train"'):
        BoringDataModule().show_batch("trian")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'lt-core\[plot\]'"):
        Images().show_batch()


def test_dataset_without_torch_base() -> None:
    """A dataset that only has items, such as those of other libraries, is one dataset."""

    class Items:
        def __getitem__(self, i: int) -> int:
            if i >= 4:
                raise IndexError
            return i

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[int]:
            return iter(range(4))

    items: Dataset[Any] = Items()  # type: ignore[assignment]
    assert len(LightningDataModule.from_datasets(items, batch_size=2).train_dataloader()) == 2
