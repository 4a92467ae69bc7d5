"""TensorBoardLogger keeps its rules where tensorboardX writes the files, with or without torch installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lt_loggers.tensorboard as home
from lt_interface import Logger
from lt_interface.testing import LoggerConformance
from lt_loggers import TensorBoardLogger


@pytest.fixture(autouse=True)
def tensorboardx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tensorboardX write the files though torch may be there; skip where it is not installed."""
    pytest.importorskip("tensorboardX")
    monkeypatch.setattr(home, "_writer_package", lambda: "tensorboardX")


@pytest.mark.filterwarnings("ignore:.*tensorboardX takes no name")
class TestTensorBoardXLogger(LoggerConformance):
    patience = 10.0

    def make_logger(self, folder: Path) -> Logger:
        return TensorBoardLogger(folder)

    def kept_name(self, name: str) -> str:
        return name.replace(" ", "_u20_")

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        assert logger.directory is not None
        found: dict[str, dict[int, float]] = {}
        reader = EventAccumulator(logger.directory, size_guidance={"scalars": 0}).Reload()
        for tag in reader.Tags()["scalars"]:
            points = reader.Scalars(tag)
            found[tag] = {point.step: point.value for point in points}
            assert len(found[tag]) == len(points), f"{tag}: a step twice"
        return found


def test_files_of_one_second_stay_apart(tmp_path: Path) -> None:
    """Writers that are opened and closed within a second replace none of each other's files."""
    logger = TensorBoardLogger(tmp_path, filename_suffix=".mine")
    for step in range(12):
        logger.log_metrics({"loss": float(step)}, step)
        logger.finish("success")
    files = sorted(p.name for p in Path(logger.log_dir).glob("events*"))
    assert len(files) == 12
    assert all(name.endswith(".mine") for name in files)
    assert TestTensorBoardXLogger().read(logger)["loss"] == {step: float(step) for step in range(12)}


def test_changed_names(tmp_path: Path) -> None:
    """A name that tensorboardX refuses is changed one-to-one, reported once, and known again by a resumed run."""
    old = TensorBoardLogger(tmp_path)
    with pytest.warns(UserWarning, match="takes no name 'a b'; it is logged as 'a_u20_b', and each other") as told:
        old.log_metrics({"a b": 0.0} | {f"{number} b": 1.0 for number in range(16)}, 0)
    assert len(told) == 1
    for step in range(1, 4):
        old.log_metrics({"a b": float(step), "a_b": 7.0}, step)
    old.finish("interrupted")
    new = TensorBoardLogger(tmp_path)
    assert new.rewind(2, 0)
    with pytest.warns(UserWarning, match="takes no name 'a b'"):
        new.log_metrics({"a b": 0.0}, 0)
    for step in range(1, 5):
        new.log_metrics({"a b": float(step)}, step)
    new.finish("success")
    found = TestTensorBoardXLogger().read(new)
    assert found["a_u20_b"] == {step: float(step) for step in range(5)}
    assert found["a_b"] == {1: 7.0, 2: 7.0}


def test_needs_no_torch(tmp_path: Path) -> None:
    """Logging metrics and hyper-parameters through tensorboardX loads no torch."""
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['torch.utils'] = None\n"
        "import lt_loggers.tensorboard as module\n"
        "module._writer_package = lambda: 'tensorboardX'\n"
        f"logger = module.TensorBoardLogger({str(tmp_path)!r})\n"
        "logger.log_hyperparams({'lr': 0.1})\n"
        "logger.log_metrics({'loss': 1.0}, 0)\n"
        "logger.finish('success')\n"
        "print(logger.rewind(0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "True"
