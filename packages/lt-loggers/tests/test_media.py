"""Pictures, figures and sounds of any kind become arrays and bytes."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lt_loggers.encoding import as_list, frames, gif, per_item, pictures, png, render, wav


@given(
    st.integers(5, 9), st.integers(5, 9), st.sampled_from([None, 1, 3, 4]), st.sampled_from(["tensor", "array"]),
    st.sampled_from(["float", "int", "bool"]),
)  # fmt: skip
def test_pictures_of_any_kind(height: int, width: int, channels: int | None, kind: str, dtype: str) -> None:
    """Any shape and type becomes (H, W, C) of bytes: black stays black, white stays white."""
    shape = (height, width) if channels is None else (channels, height, width)
    white = np.ones(shape, {"float": np.float32, "int": np.int64, "bool": bool}[dtype])
    white = white * 255 if dtype == "int" else white
    given: Any = torch.as_tensor(white) if kind == "tensor" else white
    (picture,) = pictures([given])
    assert picture.shape == (height, width, channels or 1)
    assert picture.dtype == np.uint8
    assert (picture == 255).all()
    assert (pictures([given * 0])[0] == 0).all()


def test_pictures_are_copies() -> None:
    """What is changed after the call does not change the picture."""
    array = np.zeros((4, 4, 3), np.uint8)
    (picture,) = pictures([array])
    array[:] = 9
    assert (picture == 0).all()


def test_pictures_of_files_and_pil(tmp_path: Path) -> None:
    """Paths and PIL images are pictures, too, and png writes what PIL reads back."""
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    (tmp_path / "a.png").write_bytes(png(np.asarray(image)))
    for picture in pictures([image, tmp_path / "a.png"]):
        assert picture.tolist() == [[[1, 2, 3]] * 3] * 2


@pytest.mark.parametrize("shape", [(5,), (2, 5, 5), (1, 2, 3, 4)])
def test_no_picture(shape: tuple[int, ...]) -> None:
    """A shape that is no picture's is an error that names it."""
    with pytest.raises(ValueError, match=r"a picture must have.*Got the shape \("):
        pictures([np.zeros(shape)])


def test_figures_are_drawn_and_left_alone() -> None:
    """A figure is drawn at its own size, and keeps its canvas."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1), dpi=50)
    figure.subplots().plot([1, 2])
    canvas = figure.canvas
    assert render(figure).shape == (50, 100, 4)
    assert figure.canvas is canvas


@pytest.mark.parametrize("samples", [np.array([0.0, 1.0, -1.0, 2.0]), torch.tensor([[0.0, 1.0, -1.0, 2.0]])])
def test_sounds(samples: Any) -> None:
    """A sound of numbers between -1 and 1 becomes 16 bits, and what is louder is cut off."""
    with wave.open(io.BytesIO(wav(samples, 8000))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (8000, 1, 4)
        assert np.frombuffer(file.readframes(4), "<i2").tolist() == [0, 32767, -32767, 32767]


def test_lists_and_their_options() -> None:
    """Each thing gets its own options; what is no list, or too short a one, is an error that says so."""
    assert per_item(2, {"caption": ["a", "b"]}) == [{"caption": "a"}, {"caption": "b"}]
    with pytest.raises(ValueError, match=r"caption: it must be a list with one entry for each of the 2. Got 1"):
        per_item(2, {"caption": ["a"]})
    with pytest.raises(TypeError, match=r"images must be a list. Got str. Write \[image\]"):
        as_list("x", "images", "a.png")


@pytest.mark.parametrize("channels", [1, 3])
def test_videos(channels: int, tmp_path: Path) -> None:
    """A video comes back from its GIF file frame by frame, and what is no video is refused with its shape."""
    shades = np.array([0, 128, 255], np.uint8).reshape(3, 1, 1, 1)
    video = np.broadcast_to(shades, (3, channels, 4, 5))
    (tmp_path / "a.gif").write_bytes(gif(torch.from_numpy(video.copy()), 10))
    found = frames(tmp_path / "a.gif")
    assert found.shape == (3, 3, 4, 5)
    assert (found == video).all()
    with pytest.raises(ValueError, match=r"\(T, C, H, W\).*Got the shape \(3, 4\)"):
        frames(np.zeros((3, 4)))
    (tmp_path / "a.mp4").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"a\.mp4: a video must be an animated picture"):
        frames(tmp_path / "a.mp4")
