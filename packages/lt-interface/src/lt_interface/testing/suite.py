"""Base of the suites, which keeps a suite whole: its tests are inherited, never replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from lt_interface.registry import Registry

__all__ = ["Conformance"]


class Conformance:
    """Base of the suites.

    Attributes:
        plugin: The name under which the plugin is registered; empty for one that is not.
        registry: The registry of the suite's kind of plugin.
        suite_tests: The tests of the suite by name, which no subclass may replace.

    Example:
        >>> class Suite(Conformance, suite=True):
        ...     def test_works(self):
        ...         assert self.make()
        >>> class TestMine(Suite):
        ...     def make(self):
        ...         return object()
        >>> TestMine().test_works()
        >>> class TestThinned(Suite):
        ...     test_works = None
        Traceback (most recent call last):
        TypeError: TestThinned: a conformance test must stay as the suite has it. Got another test_works. Mend ...
    """

    plugin: ClassVar[str] = ""
    registry: ClassVar[Registry[Any]]
    suite_tests: ClassVar[dict[str, Callable[..., Any]]] = {}

    def __init_subclass__(cls, suite: bool = False, **kwargs: Any) -> None:
        """Note the tests of a suite; refuse a subclass of one that replaces any of them.

        Raises:
            TypeError: If a test of the suite has another body in the subclass, its mixins included.
        """
        super().__init_subclass__(**kwargs)
        if suite:
            own = {name: body for name, body in vars(cls).items() if name.startswith("test_")}
            cls.suite_tests = {**cls.suite_tests, **own}
        replaced = _replaced(cls)
        if replaced:
            raise TypeError(
                f"{cls.__name__}: a conformance test must stay as the suite has it. Got another {', '.join(replaced)}. "
                "Mend the plugin, or give your own test another name."
            )

    def make(self) -> Any:
        """Return a new plugin; override it where the constructor needs arguments."""
        return self.plugin_class()()

    def plugin_class(self) -> Any:
        """Return the registered class of the plugin under test."""
        if not self.plugin:
            pytest.fail(f"{type(self).__name__}: name the plugin (plugin = ...) or override make().")
        return self.registry.get(self.plugin)

    def test_suite_is_whole(self) -> None:
        """No test of the suite was replaced, removed or marked after the class was made."""
        replaced = _replaced(type(self))
        assert not replaced, f"these tests of the suite were replaced: {replaced}"
        marks = [mark for owner in type(self).__mro__ for mark in _marks(owner) if mark in {"skip", "skipif", "xfail"}]
        assert not marks, f"a conformance suite may not be skipped or expected to fail; got the marks {marks}"

    def test_is_registered(self) -> None:
        """The entry point of that name leads to a plugin without a conflict."""
        if self.plugin:
            assert self.registry.problem(self.plugin, "conformance suite") is None
            assert self.registry.get(self.plugin) is not None


Conformance.suite_tests = {
    "test_suite_is_whole": Conformance.test_suite_is_whole,
    "test_is_registered": Conformance.test_is_registered,
}


def _replaced(cls: type[Conformance]) -> list[str]:
    return [name for name, body in cls.suite_tests.items() if inspect.getattr_static(cls, name, None) is not body]


def _marks(owner: type) -> list[str]:
    """Return the names of the marks that a class was given itself."""
    marks: Any = vars(owner).get("pytestmark", [])
    return [mark.name for mark in (marks if isinstance(marks, list) else [marks])]
