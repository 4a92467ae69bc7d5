"""Test who writes the parts of a run, and that looking at a trainer calls nothing of the user's."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import lt_core
from lt_core import Callback, LightningModule, Trainer
from lt_core.checkpoint.parts import parts
from lt_core.demos import BoringModel
from lt_core.state.run import Run
from lt_core.state.stage import STAGES, stage_of
from lt_interface.errors import MisconfigurationException

SOURCES = Path(lt_core.__file__).parent
WRITERS = {"run/build.py"}


def written_parts(source: str) -> set[str]:
    """Return the fields of Run that a source assigns on a name that stands for a run."""
    names = {field.name for field in fields(Run)}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in names:
            owner = node.value
            name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
            if name in ("run", "_run"):
                found.add(node.attr)
    return found


def test_only_the_building_writes_the_parts_of_a_run() -> None:
    """No file but run/build.py assigns a part of a run, and that one does."""
    written = {
        str(path.relative_to(SOURCES)): found
        for path in sorted(SOURCES.rglob("*.py"))
        if (found := written_parts(path.read_text(encoding="utf-8")))
    }
    assert set(written) == WRITERS
    assert {"engine", "hooks", "world", "plan"} <= written["run/build.py"]


def test_a_run_has_at_most_25_parts_and_all_from_its_beginning() -> None:
    """What a run holds is declared once, and no part comes to be later."""
    seen: list[set[str]] = []

    class Look(Callback):
        def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
            seen.append(set(vars(trainer._run)))

        def on_train_batch_end(self, trainer: Trainer, *rest: Any) -> None:
            seen.append(set(vars(trainer._run)))

    trainer = Trainer(fast_dev_run=2, callbacks=[Look()], enable_progress_bar=False)
    trainer.fit(BoringModel())
    names = {field.name for field in fields(Run)}
    assert len(names) <= 25
    assert seen
    assert all(each == names for each in seen)


def test_each_part_of_a_checkpoint_has_a_key_of_its_own_and_a_known_moment() -> None:
    """The table that saving and resuming share names every key once, and moments that are restored."""
    trainer = Trainer(fast_dev_run=True, enable_progress_bar=False)
    trainer.fit(BoringModel())
    table = parts(trainer._run)
    keys = [part.key for part in table]
    assert len(set(keys)) == len(keys)
    moments = {"", "weights", "progress", "data module", "callbacks", "optimizers", "training", "data", "random"}
    assert {part.when for part in table} <= moments
    assert {part.key for part in table if part.per_rank} == {"rng", "metrics", "metric_objects", "data"}


@pytest.mark.parametrize("words", [("fit", "train"), ("validate", "val", "validation"), ("test",), ("predict",)])
def test_every_word_for_a_stage_names_the_same_row(words: tuple[str, ...]) -> None:
    """Methods, loops, loaders and hooks of one stage lead to one row."""
    assert len({id(stage_of(word)) for word in words}) == 1
    assert stage_of(words[0]) in STAGES


class Counted(BoringModel):
    """Module that counts the calls of each loader hook."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def train_dataloader(self) -> Any:
        self.asked.append("train")
        return super().train_dataloader()

    def val_dataloader(self) -> Any:
        self.asked.append("val")
        return super().val_dataloader()

    def test_dataloader(self) -> Any:
        self.asked.append("test")
        return super().test_dataloader()

    def predict_dataloader(self) -> Any:
        self.asked.append("predict")
        return super().predict_dataloader()


class Curious(Callback):
    """Callback that reads every size, and notes what was refused."""

    def __init__(self) -> None:
        self.refused = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for name in ("training", "val", "sanity_val", "test", "predict"):
            getattr(trainer, f"num_{name}_batches")
        try:
            trainer.estimated_stepping_batches  # noqa: B018
        except MisconfigurationException:
            self.refused += 1


@pytest.mark.parametrize(
    ("flags", "method", "asked"),
    [
        ({}, "fit", {"train", "val"}),
        ({"limit_val_batches": 0}, "fit", {"train"}),
        ({}, "validate", {"val"}),
        ({}, "test", {"test"}),
        ({}, "predict", {"predict"}),
    ],
)
def test_reading_sizes_calls_no_loader_hook_that_the_run_would_not_call(
    flags: dict[str, Any], method: str, asked: set[str], tmp_path: Path
) -> None:
    """A callback that looks at all sizes changes nothing in which loader hooks are called."""
    calls = []
    for callbacks in ([], [Curious()]):
        model = Counted()
        trainer = Trainer(
            max_steps=1,
            logger=False,
            callbacks=list(callbacks),
            default_root_dir=tmp_path,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **flags,
        )
        getattr(trainer, method)(model)
        calls.append(sorted(model.asked))
    assert calls[0] == calls[1]
    assert set(calls[1]) == asked
