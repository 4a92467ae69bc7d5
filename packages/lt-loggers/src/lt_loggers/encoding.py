"""Pictures, figures and sounds of any kind as the arrays and bytes that every tracker takes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["as_list", "finite", "frames", "gif", "mono", "per_item", "pictures", "png", "render", "rows_of", "wav"]

_CHANNELS = (1, 3, 4)


def as_list(key: str, name: str, values: Any) -> list[Any]:
    """Return a list or tuple as a list.

    Args:
        key: What the user calls it, for the message.
        name: What the values are, such as ``images``.
        values: What was given.

    Raises:
        TypeError: If it is no list.
    """
    if isinstance(values, (list, tuple)):
        return list(values)
    raise TypeError(f"{key!r}: {name} must be a list. Got {type(values).__name__}. Write [{name.rstrip('s')}].")


def per_item(n: int, kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each of ``n`` things its own arguments, out of lists of that length.

    Raises:
        ValueError: If a list has another length.
    """
    for name, values in kwargs.items():
        length = len(values) if isinstance(values, (list, tuple)) else None
        if length != n:
            got = type(values).__name__ if length is None else f"{length} of them"
            raise ValueError(f"{name}: it must be a list with one entry for each of the {n}. Got {got}.")
    return [{name: values[i] for name, values in kwargs.items()} for i in range(n)]


def _is_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _without_torch(value: Any) -> Any:
    """Return a tensor as an array on the CPU, floats in 32 bits at least; all else as it is."""
    if not _is_tensor(value):
        return value
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() and value.element_size() < 4 else value).numpy()


def finite(values: Any) -> NDArray[Any]:
    """Return the finite values of a tensor or array of any shape as an array (n,) of its own, in 64 bits."""
    import numpy as np

    array = np.array(_without_torch(values), dtype=np.float64).ravel()
    return array[np.isfinite(array)]


def pictures(images: Sequence[Any]) -> list[NDArray[Any]]:
    """Return pictures as arrays of their own, (H, W, C) in 0..255 with 1, 3 or 4 channels.

    Floats are taken in 0..1 and cut off there, integers in 0..255. Of three dimensions the channels are those with
    1, 3 or 4 entries: the first where both could be, for tensors; the last for arrays.

    Args:
        images: Tensors, arrays, PIL images or paths of files.

    Raises:
        ValueError: If one has no such shape.
    """
    return [_picture(image) for image in images]


def _picture(image: Any) -> NDArray[Any]:
    import numpy as np

    if isinstance(image, (str, os.PathLike)):
        from PIL import Image

        with Image.open(image) as opened:
            return _picture(opened)
    is_tensor = _is_tensor(image)
    if type(image).__module__.startswith("PIL."):
        image = image.convert("RGBA" if "A" in image.getbands() else "RGB")
    array = np.array(_without_torch(image))
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3:
        raise ValueError(f"a picture must have 2 or 3 dimensions. Got the shape {array.shape}.")
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and (is_tensor or not last):
        array = array.transpose(1, 2, 0)
    elif not last:
        raise ValueError(f"a picture must have 1, 3 or 4 channels. Got the shape {array.shape}.")
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    elif np.issubdtype(array.dtype, np.floating):
        array = (np.nan_to_num(array).clip(0.0, 1.0) * 255).round()
    return np.ascontiguousarray(array.clip(0, 255).astype(np.uint8))


def render(figure: Any) -> NDArray[Any]:
    """Return a figure of matplotlib as it is now, (H, W, 4) in 0..255; its own canvas stays as it was.

    A figure of plotly is drawn by its own ``to_image``, which needs kaleido.

    Raises:
        TypeError: If it is neither.
    """
    import numpy as np

    if hasattr(figure, "to_image"):
        from PIL import Image

        with Image.open(io.BytesIO(figure.to_image(format="png"))) as opened:
            return np.array(opened.convert("RGBA"))
    if not hasattr(figure, "canvas"):
        fix = "Write axes.figure." if hasattr(figure, "figure") else "Show pictures with log_image."
        raise TypeError(f"log_figure: a figure must be one of matplotlib or plotly. Got {type(figure).__name__}. {fix}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    before = figure.canvas
    try:
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return np.array(canvas.buffer_rgba())
    finally:
        figure.set_canvas(before)


def rows_of(
    columns: Sequence[Any] | None, data: Sequence[Sequence[Any]] | None, dataframe: Any
) -> tuple[list[str], list[list[Any]]]:
    """Return names of columns and rows of a table, out of both or of a data frame."""
    if dataframe is not None:
        columns, data = list(dataframe.columns), dataframe.values.tolist()
    return [str(column) for column in columns or []], [list(row) for row in data or []]


def png(array: NDArray[Any]) -> bytes:
    """Return a picture of `pictures` or `render` as the bytes of a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(out, "PNG")
    return out.getvalue()


def frames(video: Any) -> NDArray[Any]:
    """Return a video's frames as an array of its own, (T, C, H, W) in 0..255 with 1, 3 or 4 channels.

    Args:
        video: A tensor or array of that shape, or the path of an animated picture.

    Raises:
        ValueError: If it has another shape, or the file is no picture.
    """
    import numpy as np

    if isinstance(video, (str, os.PathLike)):
        from PIL import Image, ImageSequence, UnidentifiedImageError

        try:
            with Image.open(video) as opened:
                kept = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(opened)]
        except UnidentifiedImageError:
            raise ValueError(f"{os.fspath(video)}: a video must be an animated picture or an array.") from None
        stacked: NDArray[Any] = np.stack(kept).transpose(0, 3, 1, 2)
        return stacked
    array = np.asarray(_without_torch(video))
    if array.ndim != 4 or array.shape[1] not in _CHANNELS or not len(array):
        raise ValueError(f"a video must be an array (T, C, H, W) with 1, 3 or 4 channels. Got the shape {array.shape}.")
    taken: NDArray[Any] = np.nan_to_num(array).clip(0, 255).astype(np.uint8)
    return taken


def gif(video: Any, fps: float = 4) -> bytes:
    """Return a video as the bytes of a GIF file that runs for ever.

    Args:
        video: As `frames` takes it.
        fps: Frames a second.
    """
    from PIL import Image

    shown = [f[0] if f.shape[0] == 1 else f.transpose(1, 2, 0) for f in frames(video)]
    images = [Image.fromarray(frame) for frame in shown]
    out = io.BytesIO()
    duration = max(1, round(1000 / fps))
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return out.getvalue()


def _samples(sound: Any) -> NDArray[Any]:
    """Return a sound as 16-bit integers (channels, samples)."""
    import numpy as np

    array = np.atleast_2d(np.asarray(_without_torch(sound)))
    if array.ndim != 2:
        raise ValueError(f"a sound must have 1 or 2 dimensions. Got the shape {array.shape}.")
    if np.issubdtype(array.dtype, np.floating):
        array = (np.nan_to_num(array).clip(-1.0, 1.0) * 32767).round()
    return array.astype("<i2")


def mono(sound: Any, sample_rate: int | None = None) -> tuple[NDArray[Any], int]:
    """Return a sound as one channel in -1..1, and its samples a second.

    Args:
        sound: As `wav` takes it, or the path of a WAV file of 16 bits.
        sample_rate: In Hz; a file's own, or 44100, if None.

    Raises:
        ValueError: If the file is another.
    """
    import wave

    import numpy as np

    rate = 44100
    if isinstance(sound, (str, os.PathLike)):
        try:
            with wave.open(os.fspath(sound), "rb") as file:
                if file.getsampwidth() != 2:
                    raise wave.Error
                rate, channels = file.getframerate(), file.getnchannels()
                sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, channels).T
        except (wave.Error, EOFError):
            raise ValueError(f"{os.fspath(sound)}: a sound must be a WAV file of 16 bits, or an array.") from None
    return _samples(sound).mean(axis=0) / 32767, sample_rate or rate


def wav(samples: Any, sample_rate: int = 44100) -> bytes:
    """Return a sound as the bytes of a WAV file of 16 bits.

    Args:
        samples: A tensor or array (samples,) or (channels, samples); floats in -1..1, or 16-bit integers.
        sample_rate: Samples a second, in Hz.
    """
    import wave

    array = _samples(samples)
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(array.shape[0])
        file.setsampwidth(2)
        file.setframerate(int(sample_rate))
        file.writeframes(array.T.tobytes())
    return out.getvalue()
