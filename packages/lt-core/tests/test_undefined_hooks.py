"""Check that None in the place of a hook, a step or a loader is as if it were not written, and nothing is no loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ForkLauncher
from quiet import QUIET, Noting

from lt_core import Callback, LightningDataModule, LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, Timer
from lt_core.hooks.table import HOOKS, declared
from lt_interface.errors import ConfigError

BATCHES = [torch.ones(1, 1)] * 3
_METHODS = ("optimizer_step", "optimizer_zero_grad", "backward", "configure_gradient_clipping", "lr_scheduler_step")
_STATE = ("state_dict", "load_state_dict")
_LOADERS = ("val_dataloader", "test_dataloader", "predict_dataloader", "validation_step", "predict_step")


def hooks_of(kind: type, *others: str) -> list[str]:
    return [name for name in HOOKS if declared(kind, name) and name != "configure_optimizers"] + list(others)


def use(net: LightningModule, path: Path, callback: Callback | None = None, data: Any = None) -> None:
    """Train, save, resume, test, predict and load with it."""
    flags = {**QUIET, "callbacks": [callback] if callback else None, "gradient_clip_val": 1.0}
    loaders: Any = {"datamodule": data} if data else {"train_dataloaders": BATCHES, "val_dataloaders": BATCHES}
    run = Trainer(**flags, max_epochs=1)
    run.fit(net, **loaders)
    run.save_checkpoint(path)
    run.test(net, BATCHES, verbose=False)
    run.predict(net, BATCHES)
    Trainer(**flags, max_epochs=2).fit(net, **loaders, ckpt_path=path)
    type(net).load_from_checkpoint(path)


class Net(Noting):
    def forward(self, batch: Any) -> Any:
        return self.layer(batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Test nothing."""


@pytest.mark.filterwarnings("ignore:.*nothing is validated", "ignore:.*has no effect")
@pytest.mark.parametrize("on_class", [True, False])
@pytest.mark.parametrize("name", hooks_of(LightningModule, *_METHODS, *_LOADERS))
def test_none_in_a_module(name: str, on_class: bool, tmp_path: Path) -> None:
    """Every hook, step and loader of a module may be None, in the class or on the instance."""
    net = type("Net", (Net,), {name: None} if on_class else {})()
    if not on_class:
        setattr(net, name, None)
    use(net, tmp_path / "a.ckpt")
    assert net.training


@pytest.mark.parametrize("on_class", [True, False])
@pytest.mark.parametrize("name", hooks_of(Callback, *_STATE))
def test_none_in_a_callback(name: str, on_class: bool, tmp_path: Path) -> None:
    """The same for callbacks."""
    callback = type("Own", (Callback,), {name: None} if on_class else {})()
    if not on_class:
        setattr(callback, name, None)
    use(Net(), tmp_path / "a.ckpt", callback)


@pytest.mark.filterwarnings("ignore:.*nothing is validated")
@pytest.mark.parametrize("on_class", [True, False])
@pytest.mark.parametrize("name", hooks_of(LightningDataModule, "val_dataloader", "test_dataloader", *_STATE))
def test_none_in_a_data_module(name: str, on_class: bool, tmp_path: Path) -> None:
    """The same for data modules, as in those that set the loaders they lack to None."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return BATCHES

    data = type("Own", (Data,), {name: None} if on_class else {})()
    if not on_class:
        setattr(data, name, None)
    use(Net(), tmp_path / "a.ckpt", data=data)


@pytest.mark.filterwarnings("ignore:ModelCheckpoint.dirpath")
@pytest.mark.parametrize("on_class", [True, False])
@pytest.mark.parametrize("base", [ModelCheckpoint, EarlyStopping, LearningRateMonitor, Timer])
def test_none_in_a_callback_of_ours(base: type[Callback], on_class: bool, tmp_path: Path) -> None:
    """A subclass of a built-in callback may be without a state, too; its file is resumed."""
    none = dict.fromkeys(_STATE) if on_class else {}
    kind: Any = type("Own", (base,), none)

    def fit(epochs: int, path: Path | None = None) -> Trainer:
        made = kind("val") if base is EarlyStopping else kind()
        if not on_class:
            vars(made).update(dict.fromkeys(_STATE))
        own = [made] if base is ModelCheckpoint else [made, ModelCheckpoint()]
        flags = {**QUIET, "enable_checkpointing": True, "logger": True, "default_root_dir": tmp_path}
        run = Trainer(**flags, callbacks=own, max_epochs=epochs)
        run.fit(Net(), BATCHES, BATCHES, ckpt_path=path)
        return run

    (path,) = (Path(c.best_model_path) for c in fit(1).checkpoint_callbacks if isinstance(c, ModelCheckpoint))
    assert fit(2, path).current_epoch == 2


@pytest.mark.parametrize("on_class", [True, False])
@pytest.mark.parametrize("name", _STATE)
def test_none_in_a_scheduler(name: str, on_class: bool, tmp_path: Path) -> None:
    """A scheduler whose state method is None has none."""
    kind: Any = type("Own", (torch.optim.lr_scheduler.StepLR,), {name: None} if on_class else {})

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            scheduler = kind(optimizer, 1)
            if not on_class:
                setattr(scheduler, name, None)
            return [optimizer], [scheduler]

    use(Scheduled(), tmp_path / "a.ckpt")


@pytest.mark.parametrize("on_class", [True, False])
def test_none_travels_from_other_processes(on_class: bool) -> None:
    """What launched ranks give back lacks the states of a callback and a data module that have None for them."""

    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return BATCHES

    kinds: list[Any] = [type("Own", (base,), dict.fromkeys(_STATE) if on_class else {}) for base in (Callback, Data)]
    callback, data = (kind() for kind in kinds)
    for made in () if on_class else (callback, data):
        vars(made).update(dict.fromkeys(_STATE))
    run = Trainer(**QUIET, max_epochs=1, callbacks=[callback], launcher=ForkLauncher())
    with pytest.warns(UserWarning, match="nothing is validated"):
        run.fit(Net(), datamodule=data)
    assert run.global_step == 3


@pytest.mark.parametrize("name", ["training_step", "configure_optimizers", "train_dataloader"])
def test_none_where_training_needs_it(name: str) -> None:
    """It is refused as what is missing is."""
    net = type("Net", (Net,), {name: None})()
    with pytest.raises(ConfigError, match=name):
        Trainer(**QUIET, max_epochs=1).fit(net)


def test_none_gives_way_to_the_data_modules_or_the_modules_own() -> None:
    """Where the data module's loader is None, the module's is taken."""

    class Data(LightningDataModule):
        val_dataloader = None

        def train_dataloader(self) -> Any:
            return BATCHES

    class Loads(Net):
        def val_dataloader(self) -> Any:
            return BATCHES

    run = Trainer(**QUIET, max_epochs=1)
    run.fit(Loads(), datamodule=Data())
    assert "val" in run.callback_metrics


NOTHING: list[Any] = [[], (), {}, [[]], {"a": []}]


@pytest.mark.parametrize("nothing", [*NOTHING, None])
@pytest.mark.parametrize("place", ["argument", "module", "data module"])
def test_no_validation_loader_is_no_validation(nothing: Any, place: str) -> None:
    """Nothing is validated, and callbacks that look whether validation runs see it."""
    seen = []

    class Loads(Net):
        def train_dataloader(self) -> Any:
            return BATCHES

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(batch_idx)

    class Data(LightningDataModule):
        def val_dataloader(self) -> Any:
            return nothing

    if place == "module" or nothing is None:
        Loads.val_dataloader = Data.val_dataloader  # type: ignore[assignment, method-assign]
    given: dict[str, Any] = {"argument": {"val_dataloaders": nothing}, "data module": {"datamodule": Data()}}
    run = Trainer(**QUIET, max_epochs=1)
    run.fit(Loads(), **given.get(place, {}))
    assert seen == []
    assert not run.enable_validation
    assert run.num_val_batches == []


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("call", ["validate", "test", "predict"])
def test_an_evaluation_of_no_loaders_returns_nothing(nothing: Any, call: str) -> None:
    """One warning, no hook, no result."""
    run, fired = Trainer(**QUIET, max_epochs=1), []
    run.on({"validate": "validation"}.get(call, call) + "_start")(lambda: fired.append(call))
    with pytest.warns(UserWarning, match="gave no loader"):
        assert getattr(run, call)(Net(), nothing) == []
    assert fired == []


@pytest.mark.parametrize("sanity", [0, 2])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("flags", "loader", "message"),
    [
        ({}, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(0, 1))), "at least one batch"),
        ({"limit_val_batches": 0.1}, BATCHES, "must be at least one"),
        ({"limit_val_batches": 0.5}, lambda: iter(BATCHES), "known length"),
    ],
)
def test_validation_data_that_cannot_be_used_is_refused_before_training(
    flags: dict[str, Any], loader: Any, message: str, every: int, sanity: int
) -> None:
    """Whether there is a sanity check or not, and however late validation is due."""
    run, seen = Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=sanity, check_val_every_n_epoch=every, **flags), []
    run.on("train_batch_start")(seen.append)
    with pytest.raises(ConfigError, match=message):
        run.fit(Net(), BATCHES, loader)
    assert seen == []
