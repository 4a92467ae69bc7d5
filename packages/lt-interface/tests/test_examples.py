"""The examples in the docstrings of the interface run."""

from __future__ import annotations

import doctest
import pkgutil
from importlib import import_module

import pytest

import lt_interface

MODULES = ["lt_interface", *(m.name for m in pkgutil.walk_packages(lt_interface.__path__, "lt_interface."))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    """Every example of a module gives what its docstring shows."""
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0


def test_examples_are_many() -> None:
    """The modules hold examples that can run, so that the test above is not empty."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert sum(len(test.examples) for name in MODULES for test in finder.find(import_module(name))) > 150
