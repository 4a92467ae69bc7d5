"""Pictures, sounds, text, tables and histograms come back from TensorBoard's files as they were given."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lt_loggers.tensorboard as home
from lt_loggers import TensorBoardLogger
from lt_loggers.encoding import wav

KEPT = {"scalars": 0, "tensors": 0, "images": 0, "audio": 0, "histograms": 0, "compressedHistograms": 0}


@pytest.fixture(params=["torch.utils.tensorboard", "tensorboardX"], autouse=True)
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let each of the two packages write the files."""
    pytest.importorskip(request.param)
    monkeypatch.setattr(home, "_writer_package", lambda: request.param)
    return request.param


@pytest.fixture
def logger(tmp_path: Path) -> TensorBoardLogger:
    return TensorBoardLogger(tmp_path)


def read(logger: TensorBoardLogger) -> EventAccumulator:
    logger.finish("success")
    return EventAccumulator(logger.log_dir, size_guidance=KEPT).Reload()


def shown(logger: TensorBoardLogger, tag: str) -> list[tuple[int, Any]]:
    """Return the steps and the pixels of the pictures under a tag."""
    from PIL import Image

    return [(e.step, np.asarray(Image.open(io.BytesIO(e.encoded_image_string)))) for e in read(logger).Images(tag)]


def text(logger: TensorBoardLogger, tag: str) -> list[tuple[int, str]]:
    events = read(logger)
    name = next(found for found in events.Tags()["tensors"] if found.split("/text_summary")[0] == tag)
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(name)]


def test_pictures(logger: TensorBoardLogger) -> None:
    """One picture lies under its tag, several under a number each, pixel for pixel."""
    first = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    logger.log_image("one", [first], step=3)
    logger.log_image("two", [first, 255 - first], step=4)
    ((step, pixels),) = shown(logger, "one")
    assert step == 3
    assert (pixels == first).all()
    ((step, pixels),) = shown(logger, "two/1")
    assert step == 4
    assert (pixels == 255 - first).all()


def test_figure_may_be_closed(logger: TensorBoardLogger) -> None:
    """A figure is shown as it was when it was logged, though it is cleared at once."""
    figures = pytest.importorskip("matplotlib.figure")
    figure = figures.Figure(figsize=(2, 1), dpi=50)
    figure.patch.set_facecolor("red")
    logger.log_figure("drawn", figure, step=2)
    figure.patch.set_facecolor("blue")
    with pytest.raises(TypeError, match=r"one of matplotlib or plotly. Got Axes. Write axes\.figure"):
        logger.log_figure("axes", figure.subplots())
    ((step, pixels),) = shown(logger, "drawn")
    assert (step, pixels.shape[:2], tuple(pixels[0, 0, :3])) == (2, (50, 100), (255, 0, 0))


@pytest.mark.parametrize("shape", [(800,), (1, 800), (2, 800)])
def test_sound(logger: TensorBoardLogger, shape: tuple[int, ...]) -> None:
    """A sound of one or two channels comes back as one channel of its rate and length."""
    wanted = np.sin(np.linspace(0, 30, 800)).astype(np.float32)
    logger.log_audio("beep", [np.broadcast_to(wanted, shape)], step=5, sample_rate=[8000])
    (event,) = read(logger).Audio("beep")
    with wave.open(io.BytesIO(event.encoded_audio_string)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        samples = np.frombuffer(file.readframes(800), "<i2") / 32767
    assert event.step == 5
    assert np.allclose(samples, wanted, atol=1e-3)


def test_sound_of_a_file(logger: TensorBoardLogger, tmp_path: Path) -> None:
    """A WAV file is played at its own rate, 16-bit integers at their height, and another file is refused by name."""
    samples = np.array([[0, 16384, -16384, 32767]], "<i2")
    (tmp_path / "a.wav").write_bytes(wav(samples, 8000))
    logger.log_audio("file", [tmp_path / "a.wav"])
    logger.log_audio("array", [samples], sample_rate=[8000])
    events = read(logger)
    for tag in ("file", "array"):
        with wave.open(io.BytesIO(events.Audio(tag)[0].encoded_audio_string)) as file:
            assert file.getframerate() == 8000
            assert np.abs(np.frombuffer(file.readframes(9), "<i2").astype(int) - samples).max() <= 1
    (tmp_path / "b.mp3").write_bytes(b"no sound")
    with pytest.raises(ValueError, match=r"b\.mp3: a sound must be a WAV file"):
        logger.log_audio("other", [tmp_path / "b.mp3"])


def test_histogram_leaves_out_what_is_not_finite(logger: TensorBoardLogger) -> None:
    """A histogram counts every finite number."""
    logger.log_histogram("weights", np.array([0.0, 1.0, 2.0, np.nan, np.inf]), step=1)
    (event,) = read(logger).Histograms("weights")
    value = event.histogram_value
    assert (event.step, value.min, value.max, value.num, value.sum) == (1, 0.0, 2.0, 3.0, 3.0)


def test_text_and_table(logger: TensorBoardLogger) -> None:
    """A text is kept as it is, a table laid out in Markdown with its bars kept apart."""
    logger.log_text("note", "**hello** \u00e9", step=1)
    logger.log_text("cells", columns=["a", 2], data=[["x", "y"]], step=3)
    logger.log_table("grades", ["who", "what"], [["a|b", 1], ["c", 2.5]], step=2)
    assert text(logger, "note") == [(1, "**hello** \u00e9")]
    assert text(logger, "cells") == [(3, "| a | 2 |\n| --- | --- |\n| x | y |")]
    assert text(logger, "grades") == [(2, "| who | what |\n| --- | --- |\n| a\\|b | 1 |\n| c | 2.5 |")]


def test_frames_of_a_video_side_by_side(logger: TensorBoardLogger) -> None:
    """A video is shown as a strip of its frames."""
    frames = np.stack([np.full((3, 4, 4), shade, np.uint8) for shade in (0, 128, 255)])
    logger.log_video("moving", [frames], step=7)
    ((step, pixels),) = shown(logger, "moving")
    assert (step, pixels.shape) == (7, (4, 12, 3))
    assert [int(pixels[0, x, 0]) for x in (0, 4, 8)] == [0, 128, 255]


def test_pictures_of_the_last_validation_outlive_a_resume(tmp_path: Path) -> None:
    """What was shown at the checkpoint's own step is still there after the run went on from it, scalars are not."""
    old = TensorBoardLogger(tmp_path)
    for step in (9, 10, 11):
        old.log_image("picture", [np.full((2, 2, 3), step, np.uint8)], step)
        old.log_metrics({"loss": float(step)}, step)
    old.finish("interrupted")
    new = TensorBoardLogger(tmp_path)
    new.rewind(9, old.version)
    new.log_metrics({"loss": 99.0}, 10)
    assert [step for step, _ in shown(new, "picture")] == [9, 10]
    assert [(e.step, e.value) for e in read(new).Scalars("loss")] == [(9, 9.0), (10, 99.0)]
