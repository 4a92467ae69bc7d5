"""The bases of loggers number folders, name metrics and keep silent where they must."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lt_interface import ConfigError, MisconfigurationException
from lt_interface.hyperparameters import plain_dict
from lt_interface.versions import VersionedLogger, files_are_gone, replace_text, unless_silent


class Listing(VersionedLogger):
    """Logger that keeps what it gets in a list."""

    def __init__(self, save_dir: Path, version: int | str | None = None, prefix: str = "") -> None:
        super().__init__(str(save_dir), "runs", version, prefix, None)
        self.rows: list[dict[str, float]] = []

    def _started(self) -> Any:
        return self.rows

    @unless_silent
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.rows.append({self._prefixed(key): self._number(key, value) for key, value in metrics.items()})


def test_folders_of_versions(tmp_path: Path) -> None:
    """Each run claims a folder at its first use; one that is named or shared claims none."""
    first, second, named = Listing(tmp_path), Listing(tmp_path), Listing(tmp_path, "mine")
    assert list(tmp_path.iterdir()) == []
    assert (second.version, first.version, named.version) == (0, 1, "mine")
    assert (first.log_dir, named.log_dir) == (str(tmp_path / "runs/version_1"), str(tmp_path / "runs/mine"))
    shared = Listing(tmp_path)
    shared.share_version(7)
    first.share_version(7)
    assert (shared.version, first.version) == (7, 1)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["version_0", "version_1"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    """Where nothing can be written, the first use names the logger and its folder."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"Listing\(save_dir='.*file'\): its folder must be writable.*Give another"):
        _ = Listing(tmp_path / "file").version


def test_silent_on_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On any process but the first nothing is logged or claimed, and the experiment takes every call."""
    assert Listing(tmp_path).version == 0
    monkeypatch.setenv("RANK", "2")
    logger = Listing(tmp_path)
    logger.log_metrics({"loss": 1.0})
    logger.experiment.anything(1)
    assert (logger.rows, logger.version) == ([], 0)
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_names_and_numbers(tmp_path: Path) -> None:
    """Names get the prefix, and a value that is no number is refused by its own name."""
    logger = Listing(tmp_path, prefix="fold1")
    logger.log_metrics({"loss": 1})
    assert logger.rows == [{"fold1-loss": 1.0}]
    with pytest.raises(MisconfigurationException, match=r"Listing\.log_metrics\('loss'\): .* Got 'high' of type str\."):
        logger.log_metrics({"loss": "high"})


def test_warns_once_a_topic(tmp_path: Path) -> None:
    """A second warning about the same topic is left out."""
    logger = Listing(tmp_path)
    for topic in ("a", "b"):
        with pytest.warns(UserWarning, match=f"about {topic}"):
            logger._warn_once(topic, f"about {topic}")
    logger._warn_once("a", "about a")  # would be an error here


def test_text_is_replaced_whole(tmp_path: Path) -> None:
    """A file that is written anew holds the new text, any letters, and leaves no draft; in a wrong folder nothing."""
    path = tmp_path / "a.txt"
    for text in ("a long text", "b\ud800"):
        replace_text(path, text)
    assert path.read_text() == "b\\ud800"
    with pytest.raises(OSError, match="missing"):
        replace_text(tmp_path / "missing" / "a.txt", "c")
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_gone() -> None:
    """The error of a file that somebody removed asks for all records anew."""
    error: Any = files_are_gone(Path("a.csv"))
    assert isinstance(error, FileNotFoundError)
    assert (str(error), error.lost_all) == ("a.csv is gone; all of it is written again", True)


@pytest.mark.parametrize(("given", "found"), [({"a": {"b": 1}}, {"a": {"b": 1}}), (0.1, {"value": 0.1})])
def test_hyperparameters_as_a_dict(given: Any, found: dict[str, Any]) -> None:
    """What is no mapping becomes the entry ``value``."""
    assert plain_dict(given) == found
