"""The Media base guards, converts and finds the step once for every tracker."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from lt_interface.abilities import MEDIA
from lt_loggers.media import Media, named

PICTURE, SOUND, FILM = np.zeros((2, 3, 3), np.uint8), np.zeros(8, np.float32), np.zeros((2, 3, 4, 4), np.uint8)
CALLS: dict[str, Callable[[Any, int | None], None]] = {
    "log_image": lambda logger, step: logger.log_image("key", [PICTURE], step, caption=["a"]),
    "log_figure": lambda logger, step: logger.log_figure("key", "figure", step),
    "log_histogram": lambda logger, step: logger.log_histogram("key", [1.0, float("nan")], step),
    "log_text": lambda logger, step: logger.log_text("key", "text", step=step),
    "log_table": lambda logger, step: logger.log_table("key", ["a"], [[1]], step=step),
    "log_audio": lambda logger, step: logger.log_audio("key", [SOUND], step),
    "log_video": lambda logger, step: logger.log_video("key", [FILM], step),
}


class Tracker(Media):
    """Tracker from outside that notes what it is to show."""

    def __init__(self) -> None:
        super().__init__("folder", "", None)
        self.shown: list[tuple[Any, ...]] = []

    def _put(self, *given: Any) -> Any:
        return [partial(self.shown.append, given)]

    _put_images = _put_figure = _put_histogram = _put_text = _put_table = _put_audios = _put_videos = _put


def test_every_kind_of_media() -> None:
    """A tracker with its seven methods offers every kind of media that the core shows."""
    assert CALLS.keys() == MEDIA.keys()


@pytest.mark.parametrize("call", CALLS)
def test_step_turn_and_guard(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step is the given one, the run's or 0; a run's media wait for their turn; other ranks show nothing."""
    logger, waiting = Tracker(), []
    CALLS[call](logger, 3)
    CALLS[call](logger, None)
    logger._feed = Namespace(later=lambda show, what: waiting.append((show, what)), step=17)  # type: ignore[assignment]
    CALLS[call](logger, None)
    assert len(logger.shown) == 2
    ((show, what),) = waiting
    show()
    assert [given[-1] for given in logger.shown] == [3, 0, 17]
    assert {given[0] for given in logger.shown} == {"key"}
    assert what == f"{call.removeprefix('log_')} key"
    monkeypatch.setenv("RANK", "1")
    CALLS[call](logger, 4)
    assert (len(logger.shown), len(waiting)) == (3, 1)


def test_everything_is_converted_at_the_call() -> None:
    """Pictures become bytes, histograms finite values, and options one dict for each thing."""
    logger = Tracker()
    picture = np.ones((3, 4))
    logger.log_image("key", [picture], caption=["a"])
    picture[:] = 0
    logger.log_histogram("key", [1.0, float("inf")], bins=5)
    ((_, (array,), options, _), (_, values, bins, _)) = logger.shown
    assert array.shape == (3, 4, 1)
    assert (array == 255).all()
    assert (options, values.tolist(), bins) == ([{"caption": "a"}], [1.0], 5)


@pytest.mark.parametrize("method", ["log_image", "log_audio", "log_video"])
def test_wrong_lists(method: str) -> None:
    """What is no list is refused by its key, and options must be as many as the things."""
    with pytest.raises(TypeError, match=r"'key': \w+ must be a list. Got ndarray"):
        getattr(Tracker(), method)("key", PICTURE)
    with pytest.raises(ValueError, match="caption: it must be a list with one entry for each of the 1"):
        getattr(Tracker(), method)("key", [PICTURE], caption=["a", "b"])


def test_names_of_several() -> None:
    """One thing keeps the name, several get a number each."""
    assert list(named("key", ["a"])) == [("key", "a")]
    assert list(named("key", ["a", "b"], "_")) == [("key_0", "a"), ("key_1", "b")]
