"""LightningDataModule: data, from download to batches, in one object."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

from lt_core.callback import is_default
from lt_core.hooks.declared import DataModuleHooks
from lt_core.model.from_checkpoint import load_datamodule, not_on_instances
from lt_core.model.hparams import HyperparametersMixin

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure
    from torch.utils.data import DataLoader, Dataset
    from typing_extensions import Self

    from lt_core.data.show import BatchTable
    from lt_core.trainer import Trainer

__all__ = ["LightningDataModule"]


class LightningDataModule(DataModuleHooks, HyperparametersMixin):
    """Data of a model, in one object: download, setup, loaders, moving to the device.

    Attributes:
        name: A name of your own.
    """

    #: Key of a checkpoint that holds the hyper-parameters.
    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "datamodule_hyper_parameters"
    #: Key that holds which argument was saved as a whole.
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "datamodule_hparams_name"
    #: Key that holds what kind of container they were.
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "datamodule_hparams_type"

    name: str | None = None
    _trainer_ref: weakref.ref[Trainer] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    @property
    def trainer(self) -> Trainer | None:
        """The trainer that uses this data module, held weakly; None without one."""
        return None if self._trainer_ref is None else self._trainer_ref()

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        self._trainer_ref = None if trainer is None else weakref.ref(trainer)

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        val_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        test_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        predict_dataset: Dataset[Any] | Iterable[Dataset[Any]] | None = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Make a data module of ready datasets; only training data is shuffled.

        Args:
            train_dataset: A dataset, or several for several loaders.
            val_dataset: The same for validation.
            test_dataset: The same for the test.
            predict_dataset: The same for prediction.
            batch_size: Samples a batch; also given to the class if it takes an argument of that name.
            num_workers: Processes a loader; also given to the class if it takes it.
            datamodule_kwargs: Other arguments of the class.
        """
        given = {"train": train_dataset, "val": val_dataset, "test": test_dataset, "predict": predict_dataset}
        parameters = inspect.signature(cls.__init__).parameters
        # The base class takes any keyword only to pass it on; a class of the user's own means it.
        accepts_any = cls.__init__ is not LightningDataModule.__init__ and any(
            p.kind is p.VAR_KEYWORD for p in parameters.values()
        )
        for name, value in (("batch_size", batch_size), ("num_workers", num_workers)):
            if accepts_any or name in parameters:
                datamodule_kwargs.setdefault(name, value)
        datamodule = cls(**datamodule_kwargs)
        for stage, data in given.items():
            if data is not None:
                setattr(datamodule, f"{stage}_dataloader", _Loaders(data, stage == "train", batch_size, num_workers))
        return datamodule

    @not_on_instances
    def load_from_checkpoint(
        cls,  # noqa: N805 - ruff does not know the decorator
        checkpoint_path: str | PathLike[str],
        map_location: Any = None,
        hparams_file: str | PathLike[str] | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Build a data module from the hyper-parameters in a checkpoint; its state is the Trainer's to restore.

        Args:
            checkpoint_path: The file.
            map_location: Where to put tensors among them, as for ``torch.load``.
            hparams_file: A .yaml or .csv file of hyper-parameters, used instead of the checkpoint's.
            weights_only: False consents to make the objects that a file of ``torch.save`` holds, as for modules.
            kwargs: Arguments of ``__init__``, which take precedence over the saved ones.

        Raises:
            CheckpointError: If the file does not fit, or an argument is missing.
        """
        trusted = weights_only is False
        return cast("Self", load_datamodule(cls, checkpoint_path, map_location, hparams_file, trusted, kwargs))

    def show_batch(
        self, stage: str = "train", n: int = 16, path: str | PathLike[str] | None = None
    ) -> Figure | BatchTable:
        """Show one batch: a grid of pictures for images, else a table of shapes, types and ranges.

        Outside a run, ``prepare_data`` and ``setup`` are called first. Random states stay as they are.

        Args:
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
            n: The most pictures to show.
            path: Where to write the picture or the table.

        Returns:
            A matplotlib figure for images, else the table.

        Raises:
            ConfigError: For another stage, no data, or images without matplotlib.
        """
        from lt_core.data import show as batch_picture

        kind = batch_picture.check_stage(stage)
        batch = batch_picture.first_batch(self, kind)
        return batch_picture.show(batch, n=n, path=path, title=f"{type(self).__name__}, {kind}")

    def __str__(self) -> str:
        """Return the sizes of the datasets that are known; runs no hook."""
        return "\n".join(
            f"{{{stage.capitalize()} dataloader: {self._size(stage)}}}" for stage in ("train", "val", "test", "predict")
        )

    def _size(self, stage: str) -> str:
        own = vars(self).get(f"{stage}_dataloader")
        if isinstance(own, _Loaders):
            datasets = _leaves(own.data)
        else:
            trainer, loaders = self.trainer, None
            if trainer is not None and trainer.datamodule is self:
                loaders = trainer.train_dataloader if stage == "train" else getattr(trainer, f"{stage}_dataloaders")
            if loaders is None:
                name = f"{stage}_dataloader"
                written = own is not None or not is_default(getattr(type(self), name))
                return "not loaded yet" if written else "None"
            datasets = [getattr(loader, "dataset", loader) for loader in _leaves(loaders)]
        sizes = [f"size={_length(d)}" for d in datasets]
        return sizes[0] if len(sizes) == 1 else "; ".join(f"{i}. {size}" for i, size in enumerate(sizes, 1))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_trainer_ref"}


class _Loaders:
    """Function that makes the loaders of one stage each time; picklable, unlike a closure."""

    def __init__(self, data: Any, shuffle: bool, batch_size: int, num_workers: int) -> None:
        several = isinstance(data, (list, tuple, Mapping)) or not (
            hasattr(data, "__getitem__") or _iterates_samples(data)
        )
        self.data = list(data) if several and not isinstance(data, Mapping) else data
        self.shuffle, self.batch_size, self.num_workers = shuffle, batch_size, num_workers

    def __call__(self) -> Any:
        if isinstance(self.data, Mapping):
            return {key: self._loader(item) for key, item in self.data.items()}
        if isinstance(self.data, list):
            return [self._loader(item) for item in self.data]
        return self._loader(self.data)

    def _loader(self, dataset: Any) -> DataLoader[Any]:
        import torch
        from torch.utils.data import DataLoader

        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=self.shuffle and not _iterates_samples(dataset),
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),  # elsewhere torch only warns that it cannot
        )


def _iterates_samples(data: Any) -> bool:
    from torch.utils.data import IterableDataset

    return isinstance(data, IterableDataset)


def _leaves(data: Any) -> list[Any]:
    if isinstance(data, Mapping):
        return [leaf for item in data.values() for leaf in _leaves(item)]
    if isinstance(data, (list, tuple)):
        return [leaf for item in data for leaf in _leaves(item)]
    return [data]


def _length(data: Any) -> str:
    try:
        return str(len(data))
    except (TypeError, NotImplementedError):
        return "NA"
