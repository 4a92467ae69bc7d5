"""WandbLogger keeps pictures, tables, sounds and checkpoints with the run."""

from __future__ import annotations

import json
import os
import shutil
import struct
from argparse import Namespace
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from PIL import Image

from lt_interface import MisconfigurationException
from lt_interface.abilities import MEDIA
from lt_loggers import WandbLogger

Entry = import_module("wandb.proto.wandb_internal_pb2").Record


@pytest.fixture(autouse=True, scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep wandb silent, offline and in a folder of its own, and end its process after the last test."""
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "WANDB_SILENT": "true",
            "WANDB_CONSOLE": "off",
            "WANDB_MODE": "offline",
            "WANDB_DATA_DIR": str(tmp_path_factory.mktemp("data")),
            "WANDB_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        }.items():
            patch.setenv(key, value)
        yield
        wandb.teardown()


def entries(logger: WandbLogger, kind: str) -> list[Any]:
    """Return all entries of one kind that a run has."""
    found = []
    for path in sorted(Path(logger.save_dir, "wandb").glob(f"*run-*-{logger.version}*/*.wandb")):
        data, at, whole = path.read_bytes(), 7, b""
        while at + 7 <= len(data):
            if 32768 - at % 32768 < 7:
                at += 32768 - at % 32768
                continue
            _, length, chunk = struct.unpack_from("<IHB", data, at)
            part = data[at + 7 : at + 7 + length]
            at += 7 + length
            whole = part if chunk in (1, 2) else whole + part
            if chunk in (1, 4):
                entry = Entry.FromString(whole)
                if entry.WhichOneof("record_type") == kind:
                    found.append(getattr(entry, kind))
    return found


def row(logger: WandbLogger) -> dict[str, Any]:
    """Return the run's only row, nested as it was."""
    logger.finish("failed")
    (history,) = entries(logger, "history")
    found: dict[str, Any] = {}
    for item in history.item:
        path = [item.key] if item.key else list(item.nested_key)
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = json.loads(item.value_json)
    return found


def kept(logger: WandbLogger, path: str) -> Path:
    """Return where a file of the run is."""
    (folder,) = Path(logger.save_dir, "wandb").glob(f"offline-run-*-{logger.version}")
    return folder / "files" / path


def test_offers_all_media(tmp_path: Path) -> None:
    """Every kind of media that a module can show has its method."""
    logger = WandbLogger(save_dir=tmp_path)
    assert [name for name in MEDIA if not callable(getattr(logger, name, None))] == []


def test_images(tmp_path: Path) -> None:
    """Pictures are kept as files with their captions at the step, as they were at the call."""
    logger = WandbLogger(save_dir=tmp_path)
    picture = torch.zeros(3, 4, 5)
    picture[0] = 1.0
    logger.log_image("shown", [picture, np.zeros((4, 5), dtype=np.uint8)], step=7, caption=["red", "black"])
    found = row(logger)
    assert found["trainer/global_step"] == 7
    assert found["shown"]["captions"] == ["red", "black"]
    red, black = (Image.open(kept(logger, name)) for name in found["shown"]["filenames"])
    with red, black:
        assert red.size == black.size == (5, 4)
        assert red.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
        assert black.convert("RGB").getpixel((0, 0)) == (0, 0, 0)


def test_figure(tmp_path: Path) -> None:
    """A figure is kept as a picture, though it is closed right after the call."""
    pyplot = pytest.importorskip("matplotlib.pyplot")
    logger = WandbLogger(save_dir=tmp_path)
    figure = pyplot.figure(figsize=(2, 1), dpi=50)
    logger.log_figure("plot", figure, step=1)
    pyplot.close(figure)
    found = row(logger)
    with Image.open(kept(logger, found["plot"]["path"])) as image:
        assert image.size == (100, 50)


def test_histogram(tmp_path: Path) -> None:
    """A histogram counts the finite values of a tensor of any kind."""
    logger = WandbLogger(save_dir=tmp_path)
    values = torch.tensor([0.0, 1.0, 1.0, float("nan"), float("inf")], dtype=torch.bfloat16, requires_grad=True)
    logger.log_histogram("weights", values, step=2, bins=4)
    found = row(logger)["weights"]
    assert found["_type"] == "histogram"
    assert found["values"] == [1, 0, 0, 2]
    assert found["bins"] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_text(tmp_path: Path) -> None:
    """A text is shown as it is, with signs of HTML in it."""
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_text("note", "a < b & c\n  d", step=3)
    found = row(logger)
    assert found["trainer/global_step"] == 3
    assert "a &lt; b &amp; c\n  d" in kept(logger, found["note"]["path"]).read_text()


@pytest.mark.parametrize("method", ["log_text", "log_table"])
def test_table(tmp_path: Path, method: str) -> None:
    """Rows under names of columns are a table, kept as they were at the call."""
    logger = WandbLogger(save_dir=tmp_path)
    data = [["a", 1], ["b", 2]]
    getattr(logger, method)("table", columns=["name", "number"], data=data, step=1)
    data[0][0] = "changed"
    found = row(logger)
    table = json.loads(kept(logger, found["table"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (["name", "number"], [["a", 1], ["b", 2]])


def test_table_of_a_frame(tmp_path: Path) -> None:
    """A data frame is a table."""
    pandas = pytest.importorskip("pandas")
    logger = WandbLogger(save_dir=tmp_path)
    logger.log_table("table", dataframe=pandas.DataFrame({"x": [1, 2]}))
    table = json.loads(kept(logger, row(logger)["table"]["path"]).read_text())
    assert (table["columns"], table["data"]) == (["x"], [[1], [2]])


def test_audio(tmp_path: Path) -> None:
    """Sounds given as arrays and as files are kept, with their captions."""
    logger = WandbLogger(save_dir=tmp_path)
    file = tmp_path / "own.wav"
    file.write_bytes(b"RIFF")
    sounds = [np.sin(np.arange(800) / 5), str(file)]
    logger.log_audio("sound", sounds, step=4, sample_rate=[8000, None], caption=["sine", "own"])
    file.unlink()
    found = row(logger)
    sounds_found = found["sound"]["audio"] if "sound" in found else [found["sound/0"], found["sound/1"]]
    first, second = (kept(logger, entry["path"]) for entry in sounds_found)
    assert first.read_bytes()[:4] == b"RIFF"
    assert struct.unpack("<I", first.read_bytes()[24:28]) == (8000,)
    assert second.read_bytes() == b"RIFF"
    assert [entry["caption"] for entry in sounds_found] == ["sine", "own"]
    assert list(Path(logger.log_dir).glob(".staged*")) == []


def test_video(tmp_path: Path) -> None:
    """A video given as an array is kept as an animated picture of its rate."""
    logger = WandbLogger(save_dir=tmp_path)
    film = torch.zeros(3, 3, 8, 10, dtype=torch.uint8)
    film[1] = 128
    film[2] = 255
    logger.log_video("film", [film], step=5, fps=[10], caption=["grey"])
    found = row(logger)["film"]
    (entry,) = found["videos"]
    with Image.open(kept(logger, entry["path"])) as image:
        assert (image.n_frames, image.size) == (3, (10, 8))
        assert image.info["duration"] == 100
    assert entry["caption"] == "grey"


def test_refuses_media(tmp_path: Path) -> None:
    """What wandb cannot show is refused with the kind's name, and a list is asked for."""
    logger = WandbLogger(save_dir=tmp_path)
    with pytest.raises(ValueError, match=r"\(T, C, H, W\)"):
        logger.log_video("film", [np.zeros((3, 4))])
    with pytest.raises(MisconfigurationException, match=r"wandb\.Image"):
        logger.log_image("image", [torch.zeros(3, 2, 2)], nonsense=[1])
    with pytest.raises(TypeError, match="image"):
        logger.log_image("image", torch.zeros(3, 2, 2))  # type: ignore[arg-type]


class ModelCheckpoint(Namespace):
    """Callback that reports its checkpoints as ours does."""


def callback(folder: Path, **changes: Any) -> ModelCheckpoint:
    """Return a callback with two checkpoints, of which one is the best, and a last one."""
    files = {"epoch=0-step=10.ckpt": 0.5, "epoch=1-step=20.ckpt": 0.25, "last.ckpt": None}
    for age, name in enumerate(files):
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (1000 + age, 1000 + age))
    scores = {str(folder / name): torch.tensor(score) for name, score in files.items() if score is not None}
    return ModelCheckpoint(
        **{
            "best_model_path": str(folder / "epoch=1-step=20.ckpt"),
            "best_model_score": torch.tensor(0.25),
            "current_score": torch.tensor(0.25),
            "last_model_path": str(folder / "last.ckpt"),
            "best_k_models": scores,
            "save_top_k": 2,
            "monitor": "val_loss",
            "mode": "min",
            "save_last": True,
            **changes,
        }
    )


def content(artifact: Any) -> dict[str, bytes]:
    return {entry.path: Path(entry.local_path).read_bytes() for entry in artifact.manifest.contents}


EXPECTED = [
    (b"epoch=0-step=10.ckpt", {"latest", "step-10"}, 0.5),
    (b"epoch=1-step=20.ckpt", {"latest", "best", "step-20"}, 0.25),
    (b"last.ckpt", {"latest", "last"}, 0.25),
]


def check(logger: WandbLogger, name: str) -> None:
    """Look at the three artifacts of `callback`."""
    found = entries(logger, "artifact")
    assert {(artifact.name, artifact.type) for artifact in found} == {(name, "model")}
    assert [(content(a)["model.ckpt"], set(a.aliases), json.loads(a.metadata)["score"]) for a in found] == EXPECTED
    best = json.loads(found[1].metadata)
    assert best["original_filename"] == "epoch=1-step=20.ckpt"
    assert best["ModelCheckpoint"] == {"monitor": "val_loss", "mode": "min", "save_last": True, "save_top_k": 2}


def test_checkpoints_at_the_end(tmp_path: Path) -> None:
    """log_model=True keeps what is there at the end, once, with aliases, scores and the callback's settings."""
    logger = WandbLogger(save_dir=tmp_path, log_model=True)
    _ = logger.experiment
    logger.after_save_checkpoint(callback(tmp_path))
    logger.save()
    assert entries(logger, "artifact") == []
    logger.finish("success")
    logger.finish("failed")
    check(logger, f"model-{logger.version}")


@pytest.mark.parametrize(("log_model", "top_k"), [("all", 2), (True, -1)])
def test_checkpoints_as_they_come(tmp_path: Path, log_model: bool | str, top_k: int) -> None:
    """Checkpoints that are kept as they come are not lost when they are removed right after the call."""
    logger = WandbLogger(save_dir=tmp_path, log_model=log_model, checkpoint_name="net")
    _ = logger.experiment
    waiting: list[Any] = []
    logger._feed = Namespace(later=lambda call, what: waiting.append(call), drain=lambda: None)
    saved = callback(tmp_path, save_top_k=top_k)
    logger.after_save_checkpoint(saved)
    logger.after_save_checkpoint(saved)
    for path in tmp_path.glob("*.ckpt"):
        path.unlink()
    for call in waiting:
        call()
    logger._feed = None
    logger.finish("failed")
    found = entries(logger, "artifact")
    assert [(content(a)["model.ckpt"], set(a.aliases)) for a in found] == [entry[:2] for entry in EXPECTED]
    assert {artifact.name for artifact in found} == {"net"}
    assert list(Path(logger.log_dir).glob(".staged*")) == []


def test_checkpoint_folder(tmp_path: Path) -> None:
    """A checkpoint that is a folder is kept whole."""
    folder = tmp_path / "step=5.ckpt"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "inner" / "b").write_bytes(b"2")
    logger = WandbLogger(save_dir=tmp_path, log_model="all")
    saved = Namespace(best_model_path=str(folder), last_model_path="", best_k_models={}, save_top_k=1)
    logger.after_save_checkpoint(saved)
    shutil.rmtree(folder)
    logger.finish("failed")
    (artifact,) = entries(logger, "artifact")
    assert content(artifact) == {"step=5.ckpt/a": b"1", "step=5.ckpt/inner/b": b"2"}


def test_no_checkpoints_unless_asked(tmp_path: Path) -> None:
    """log_model=False keeps none and starts nothing."""
    logger = WandbLogger(save_dir=tmp_path / "logs")
    logger.after_save_checkpoint(callback(tmp_path))
    logger.finish("success")
    assert not (tmp_path / "logs").exists()
