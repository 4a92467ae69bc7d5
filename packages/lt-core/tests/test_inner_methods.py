"""Inner methods that subclasses override, as those written for Lightning do: they are called."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch.optim import SGD

from lt_core import Callback, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint
from lt_core.demos import BoringModel
from lt_core.plugins.io import TorchCheckpointIO
from lt_interface.errors import CheckpointError


class _Falling(BoringModel):
    """Module whose validations log 3, 2, 1, ... and its half."""

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"loss": 3.0 - self.current_epoch, "half": -self.current_epoch / 2})


class _Sum(ModelCheckpoint):
    """Checkpoints by a sum of metrics, beside which a note lies."""

    removed: list[str]

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Any]:
        found = super()._monitor_candidates(trainer)
        return {**found, "sum": found["loss"] + found["half"]}

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        self.removed.append(Path(filepath).name)


def test_a_subclass_adds_what_is_monitored_and_removes_what_lies_beside(tmp_path: Path) -> None:
    """A value that _monitor_candidates adds chooses and names files; _remove_checkpoint is asked for each old one."""
    saves = _Sum(tmp_path, "{sum:.1f}", monitor="sum")
    saves.removed = []
    Trainer(max_epochs=3, limit_train_batches=1, callbacks=[saves], **QUIET | {"enable_checkpointing": True}).fit(
        _Falling()
    )
    assert (saves.best_model_score, [path.name for path in tmp_path.glob("*.ckpt")]) == (0.0, ["sum=0.0.ckpt"])
    assert saves.removed == ["sum=3.0.ckpt", "sum=1.5.ckpt"]


def test_a_subclass_decides_when_training_stops(tmp_path: Path) -> None:
    """EarlyStopping asks _evaluate_stopping_criteria of a subclass, which may wait, or stop for a reason of its own."""

    class Late(EarlyStopping):
        looks = 0

        def _evaluate_stopping_criteria(self, current: torch.Tensor) -> tuple[bool, str]:
            self.looks += 1
            if self.looks == 5:
                return True, "five looks"
            return (False, "warm-up") if self.looks < 5 else super()._evaluate_stopping_criteria(current)

    stops = Late("loss", patience=1, min_delta=100.0)
    trainer = Trainer(max_epochs=9, limit_train_batches=1, callbacks=[stops], **QUIET)
    trainer.fit(_Falling())
    assert (trainer.current_epoch, stops.stopped_epoch, stops.stopping_reason_message) == (5, 4, "five looks")


class _Exported(ModelCheckpoint):
    """Checkpoints beside each of which an export lies."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        best = Path(self.best_model_path).name
        Path(filepath).with_suffix(".export").write_text(f"{Path(filepath).stat().st_size > 0} {best}")

    def _remove_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._remove_checkpoint(trainer, filepath)
        Path(filepath).with_suffix(".export").unlink()


class _Folder(ModelCheckpoint):
    """Checkpoints that are folders of a format of their own."""

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        Path(filepath).mkdir()
        torch.save(trainer.lightning_module.state_dict(), Path(filepath, "weights.pt"))


class _Copied(ModelCheckpoint):
    """Checkpoints the best of which is copied as soon as it is known."""

    def _update_best_and_save(self, current: torch.Tensor, trainer: Trainer, monitor_candidates: Any) -> None:
        before = self.best_model_path
        super()._update_best_and_save(current, trainer, monitor_candidates)
        if self.best_model_path != before:
            shutil.copy(self.best_model_path, Path(str(self.dirpath), "best.copy"))


class _Gated(ModelCheckpoint):
    """Checkpoints of late epochs alone."""

    def _save_topk_checkpoint(self, trainer: Trainer, monitor_candidates: Any) -> None:
        if trainer.current_epoch:
            super()._save_topk_checkpoint(trainer, monitor_candidates)


class _Uploaded(ModelCheckpoint):
    """Checkpoints that are read in the hook that has decided on them."""

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        if self.best_model_path:
            Path(str(self.dirpath), "read").write_text(str(len(Path(self.best_model_path).read_bytes()) > 0))


class _ByHand(ModelCheckpoint):
    """Checkpoints whose books the subclass keeps itself."""

    def _update_best_and_save(self, current: torch.Tensor, trainer: Trainer, monitor_candidates: Any) -> None:
        gone = self.kth_best_model_path
        path = self._get_metric_interpolated_filepath_name(monitor_candidates, trainer, gone)
        self.best_k_models.pop(gone, None)
        self.best_k_models[path] = self.best_model_score = self.current_score = current
        self.best_model_path = self.kth_best_model_path = path
        self.kth_value = current
        self._save_checkpoint(trainer, path)
        if gone and self._should_remove_checkpoint(trainer, gone, path):
            self._remove_checkpoint(trainer, gone)


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (_Exported, ["epoch=1.ckpt", "epoch=1.export", "epoch=2.ckpt", "epoch=2.export"]),
        (_Folder, ["epoch=1.ckpt", "epoch=2.ckpt"]),
        (_Copied, ["best.copy", "epoch=1.ckpt", "epoch=2.ckpt"]),
        (_Gated, ["epoch=1.ckpt", "epoch=2.ckpt"]),
        (_Uploaded, ["epoch=1.ckpt", "epoch=2.ckpt", "read"]),
        (_ByHand, ["epoch=2.ckpt"]),
    ],
)
def test_a_subclass_takes_part_in_saving(kind: type[ModelCheckpoint], files: list[str], tmp_path: Path) -> None:
    """An overridden step of saving finds the file that super() wrote and the books that speak of it, and resumes."""

    def fit(epochs: int, resume: Any = None) -> tuple[ModelCheckpoint, torch.Tensor]:
        saves = kind(
            tmp_path, "{epoch}", monitor="loss", save_top_k=1 if kind is _ByHand else 2, save_on_train_epoch_end=False
        )
        torch.manual_seed(1)
        flags = QUIET | {"enable_checkpointing": True, "limit_train_batches": 2, "limit_val_batches": 1}
        trainer = Trainer(max_epochs=epochs, callbacks=[saves], **flags)
        trainer.fit(module := _Falling(), ckpt_path=resume)
        return saves, module.layer.weight

    saves, weight = fit(3)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == files
    assert (Path(saves.best_model_path).name, saves.best_model_score) == ("epoch=2.ckpt", 1.0)
    if kind is _Exported:
        assert (tmp_path / "epoch=2.export").read_text() == "True epoch=2.ckpt"
    if kind is not _Folder:
        resumed, again = fit(3, tmp_path / ("epoch=1.ckpt" if kind is not _ByHand else "epoch=2.ckpt"))
        assert torch.equal(weight, again)
        assert resumed.best_model_score == 1.0


@pytest.mark.filterwarnings("ignore:The checkpoint folder")
def test_a_disk_that_refuses_a_subclass_leaves_its_books_and_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where super()._save_checkpoint cannot write, the books stay and training goes on; an own error ends it."""
    saves = _Exported(tmp_path, "{epoch}", monitor="loss", save_top_k=2)
    trainer = Trainer(max_epochs=3, limit_train_batches=1, callbacks=[saves], **QUIET | {"enable_checkpointing": True})
    save = trainer.save_checkpoint

    def full(path: Any, *args: Any) -> None:
        if "epoch=1" in str(path):
            raise OSError(28, "No space left on device")
        save(path, *args)

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    with pytest.warns(UserWarning, match=r"epoch=1\.ckpt: not written, training goes on"):
        trainer.fit(_Falling())
    assert [Path(path).name for path in saves.best_k_models] == ["epoch=0.ckpt", "epoch=2.ckpt"]
    monkeypatch.undo()
    (tmp_path / "epoch=1.export").mkdir()
    with pytest.raises(IsADirectoryError):
        Trainer(max_epochs=3, limit_train_batches=1, callbacks=[saves], **QUIET | {"enable_checkpointing": True}).fit(
            _Falling()
        )


class _Patient(EarlyStopping):
    """Early stopping that skips the first epochs, and looks at the epoch's end alone."""

    def _should_skip_check(self, trainer: Trainer) -> bool:
        return super()._should_skip_check(trainer) or trainer.current_epoch < 2

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        pass

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        if not self._should_skip_check(trainer):
            self._run_early_stopping_check(trainer)


class _Choosy(EarlyStopping):
    """Early stopping that passes over a value."""

    def _validate_condition_metric(self, logs: dict[str, torch.Tensor]) -> bool:
        return super()._validate_condition_metric(logs) and float(logs["loss"]) != 2.0


@pytest.mark.parametrize(("kind", "waited"), [(_Patient, 1), (_Choosy, 2), (EarlyStopping, 3)])
def test_a_subclass_decides_when_its_metric_is_looked_at(kind: type[EarlyStopping], waited: int) -> None:
    """Methods that skip a look, or a value, and the look itself may be overridden, and called from other hooks."""
    stops = kind("loss", patience=9, min_delta=100.0)
    Trainer(max_epochs=4, limit_train_batches=1, limit_val_batches=1, callbacks=[stops], **QUIET).fit(_Falling())
    assert stops.wait_count == waited


def test_an_inner_part_of_the_trainer_names_who_answers() -> None:
    """A connector of Lightning's trainer is no attribute, and the error says whom to ask."""
    trainer = Trainer(max_epochs=1, **QUIET)
    assert not hasattr(trainer, "_accelerator_connector")
    with pytest.raises(AttributeError, match=r"ask trainer\.world_size"):
        _ = trainer._accelerator_connector


class _Averaging(SGD):
    """Optimizer that keeps an average, and whose state is of a form of its own."""

    average: torch.Tensor = torch.zeros(())

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.average = 0.9 * self.average + self.param_groups[0]["params"][0].detach().sum()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return {"inner": super().state_dict(), "average": (self.average,)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["inner"])
        (self.average,) = state_dict["average"]


class _Averaged(BoringModel):
    kind: type[SGD] = _Averaging

    def configure_optimizers(self) -> Any:
        return self.kind(self.parameters(), lr=0.01, momentum=0.9)


@pytest.mark.parametrize("plugins", [[], [TorchCheckpointIO()]])
def test_an_optimizer_whose_state_has_a_form_of_its_own_is_resumed(plugins: list[Any], tmp_path: Path) -> None:
    """A state_dict without param_groups is saved as it is and given back; a plain optimizer refuses it."""

    def fit(epochs: int, kind: type[SGD] = _Averaging, path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        module = _Averaged()
        module.kind = kind
        trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, plugins=plugins, **QUIET)
        trainer.fit(module, ckpt_path=path)
        return trainer

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    resumed, straight = fit(2, path=tmp_path / "a.ckpt"), fit(2)
    assert resumed.optimizers[0].average == straight.optimizers[0].average != 0
    assert torch.equal(resumed.model.layer.weight, straight.model.layer.weight)
    with pytest.raises(CheckpointError, match=r"same kind of optimizer\. Got a state of a wrapper's own form"):
        fit(2, SGD, tmp_path / "a.ckpt")


def test_an_optimizer_that_a_callback_wraps_is_resumed(tmp_path: Path) -> None:
    """Optimizers that on_fit_start exchanges are those that get the checkpoint's states."""

    class Wrap(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
            trainer.optimizers = [_Averaging(pl_module.parameters(), lr=0.01, momentum=0.9)]

    def fit(epochs: int, path: Path | None = None) -> Trainer:
        torch.manual_seed(1)
        module = _Averaged()
        module.kind = SGD
        trainer = Trainer(max_epochs=epochs, limit_train_batches=2, limit_val_batches=0, callbacks=[Wrap()], **QUIET)
        trainer.fit(module, ckpt_path=path)
        return trainer

    fit(1).save_checkpoint(tmp_path / "a.ckpt")
    assert fit(2, tmp_path / "a.ckpt").optimizers[0].average == fit(2).optimizers[0].average != 0
