"""Paths that users' imports name, beside those where things live."""

from __future__ import annotations

import importlib

import pytest

from lt_core.builtin.precision import DoublePrecision, HalfPrecision
from lt_core.notices import PossibleUserWarning
from lt_interface import registry

MODULES = ["lt_core.plugins", "lt_core.plugins.precision"]


@pytest.mark.parametrize("module", MODULES)
def test_own_precisions_are_there(module: str) -> None:
    """Precisions of the core are the same classes under the paths of plugins."""
    found = importlib.import_module(module)
    assert (found.DoublePrecision, found.HalfPrecision) == (DoublePrecision, HalfPrecision)
    assert not hasattr(found, "SinglePrecision")


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", ["MixedPrecision", "TransformerEnginePrecision", "BitsandbytesPrecision"])
def test_those_of_a_missing_package_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    """A class of a sibling package that is not installed is an ImportError with the command."""
    points = {key: registry._scan()["lt.precisions"][key] for key in ("32-true", "64-true")}
    monkeypatch.setitem(registry._scan(), "lt.precisions", points)
    with pytest.raises(ImportError, match=rf"^{module}\.{name}: .*Run: pip install (--upgrade )?lt-accel$"):
        getattr(importlib.import_module(module), name)


def test_what_acts_on_the_first_process_is_there(caplog: pytest.LogCaptureFixture) -> None:
    """The guards of the first process stand under the paths that imports name, log and warn."""
    utilities, ranks = (importlib.import_module(f"lt_core.utilities{end}") for end in ("", ".rank_zero"))
    assert utilities.rank_zero_only is ranks.rank_zero_only
    assert ranks.rank_zero_only.rank == 0
    with caplog.at_level("INFO"):
        utilities.rank_zero_info("%d samples", 40)
    assert "40 samples" in caplog.text
    with pytest.warns(UserWarning, match="sorted") as seen:
        utilities.rank_zero_warn("the data is sorted")
    assert seen[0].filename == __file__


def test_kinds_of_warnings_are_there() -> None:
    """The class that programs silence stands under the path that imports name."""
    assert importlib.import_module("lt_core.utilities.warnings").PossibleUserWarning is PossibleUserWarning
