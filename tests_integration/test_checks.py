"""Prove that the checks in `ci` see what they are there to see."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Check = Callable[[str], ModuleType]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_only_code_lines_count(check: Check, tmp_path: Path) -> None:
    """Blanks, comments and docstrings do not count; a string over several lines does."""
    source = '"""Say it."""\n\n# why\nx = """a\nb"""\n\n\ndef f():\n    """Do\n    it.\n    """\n    return 1  # here\n'
    count, found = check("line_budget").check(write(tmp_path / "a.py", source))
    assert (count, found) == (4, [])


METHOD = "    def f{}(self):\n        x = 1\n        return x\n"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("x = 1\n" * 401, "401 code lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f() has 61 code lines"),
        (
            "class A:\n" + "".join(f"    def f{i}(self):\n        x = 1\n        return x\n" for i in range(31)),
            "31 methods",
        ),
    ],
)
def test_what_is_over_a_budget_of_lines_is_found(check: Check, tmp_path: Path, source: str, words: str) -> None:
    """A file, a function and a class that are one too large are each named."""
    _, found = check("line_budget").check(write(tmp_path / "a.py", source))
    assert len(found) == 1
    assert words in found[0]


def test_one_line_methods_do_not_count(check: Check, tmp_path: Path) -> None:
    """A class may declare as many methods of one statement as its users know names."""
    source = "class A:\n" + "".join(f'    def f{i}(self):\n        """Do."""\n        return 1\n' for i in range(40))
    assert check("line_budget").check(write(tmp_path / "a.py", source))[1] == []


def test_circles_of_imports_are_found(check: Check) -> None:
    """Modules that import one another over any number of steps are named together, others are not."""
    pytest.importorskip("grimp")
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert check("import_cycles").circles(edges) == [["b", "c"]]


def test_house_rules_find_names_and_silent_tests(check: Check, tmp_path: Path) -> None:
    """A module called by no idea and a test without a sentence are each named."""
    rules = check("house_rules")
    write(tmp_path / "packages/p/src/p/data_utils.py", "")
    write(tmp_path / "packages/p/tests/test_a.py", 'def test_a():\n    pass\n\ndef test_b():\n    """It works."""\n')
    assert len(rules.nameless(tmp_path)) == 1
    assert [line.split(": ")[1].split()[0] for line in rules.undescribed(tmp_path)] == ["test_a"]


def test_odd_words_are_found_in_every_package(check: Check, tmp_path: Path) -> None:
    """A line and a docstring in odd words are each named with what to write, whatever the package."""
    odd = '"""Be a thing."""\n# It can not work.\n'
    write(tmp_path / "packages/p/src/p/a.py", odd)
    write(tmp_path / "packages/q/src/q/b/c.py", odd)
    found = check("house_rules").odd_words(tmp_path)
    assert [line.split(": ")[0] for line in found] == [
        *("packages/p/src/p/a.py:2", "packages/p/src/p/a.py:1"),
        *("packages/q/src/q/b/c.py:2", "packages/q/src/q/b/c.py:1"),
    ]


REPORT = '<testsuites><testsuite tests="{}" failures="{}" errors="0" skipped="1" time="1.5"/></testsuites>'


@pytest.mark.parametrize(
    ("tests", "failures", "code", "line"),
    [
        (5, 0, 0, "tests: 4 passed, 0 failed, 1 skipped"),
        (5, 2, 1, "tests: 2 passed, 2 failed, 1 skipped"),
        (1, 0, 1, "tests: 0 passed, 0 failed, 1 skipped"),
    ],
)
def test_reports_are_summed(
    check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str], tests: int, failures: int, code: int, line: str
) -> None:
    """The closing line counts all sessions; a failure, or no test that ran, fails the whole."""
    write(tmp_path / "lt-core.xml", REPORT.format(tests, failures))
    assert check("sum_reports").main(str(tmp_path)) == code
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_public_names_are_listed_with_their_parameters(check: Check) -> None:
    """The listing names a function's parameters and a class's public members, so that a change of either shows."""

    def function(a: int, *rest: int, key: str = "x", **more: int) -> None:
        """Do nothing."""

    assert check("api_diff").parameters(function) == "(a, *rest, key=..., **more)"


def test_hook_table_of_the_documentation_is_the_code_s(check: Check) -> None:
    """docs/hooks.md holds every hook as the loop's own table has it."""
    table = check("hook_table")
    assert table.PAGE.read_text(encoding="utf-8").rstrip() == table.expected().rstrip()
    assert "| `on_train_batch_start` |" in table.expected()


def test_page_of_flags_in_the_documentation_is_the_code_s(check: Check) -> None:
    """docs/flags.md holds every flag as the table that parses them has it."""
    table = check("flag_table")
    assert table.PAGE.read_text(encoding="utf-8").rstrip() == table.expected().rstrip()
    assert "`accumulate_grad_batches: int = 1`" in table.expected()


class Bare:
    value = 1

    def method(self, width: int) -> None: ...


class Described:
    """Thing.

    Args:
        width: Its width.

    Attributes:
        value: A number.
    """

    value = 1

    def __init__(self, width: int) -> None: ...

    def method(self, width: int, *rest: int, **more: int) -> None:
        """Use the ``width``."""


def loose(width: int, height: int) -> None:
    """Do something as high as ``height``."""


def test_what_the_reference_lacks_is_found(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name or member that is not among what was built, without a docstring or with a silent parameter is named."""
    reference = check("api_reference")
    given = {"Bare": Bare, "Described": Described, "loose": loose}
    names = tuple(reference.Name("here", word, value, f"here.{word}") for word, value in given.items())
    monkeypatch.setattr(reference, "names", lambda: names)
    monkeypatch.setattr(reference.api_diff, "defined", lambda c: {n: (c, v) for n, v in vars(c).items() if n[0] != "_"})
    described = {f"here.{word}" for word in given} | {
        "here.Bare.value",
        "here.Described.value",
        "here.Described.method",
    }
    found = [line.split(" (")[0] for line in reference.problems(described)]
    assert sorted(found) == [
        "here.Bare.method: no docstring",
        "here.Bare.method: not in the reference",
        "here.Bare.method: parameter width is not described",
        "here.Bare.value: no docstring",
        "here.Bare: no docstring",
        "here.loose: parameter width is not described",
    ]


def test_a_new_public_name_is_looked_for_by_itself(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a package lists needs no other list, and has one home, whichever modules offer it."""
    import lt_core.callbacks

    reference = check("api_reference")
    monkeypatch.setattr(reference.api_diff, "PACKAGES", ["lt-interface", "lt-core"])
    monkeypatch.setattr(reference.api_diff, "lent", lambda module: [])
    monkeypatch.setattr(lt_core.callbacks, "Fresh", Described, raising=False)
    monkeypatch.setattr(lt_core.callbacks, "__all__", [*lt_core.callbacks.__all__, "Fresh"])
    homes = {f"{name.module}.{name.word}": name.home for name in reference.names()}
    assert homes["lt_core.callbacks.Fresh"] == "lt_core.callbacks.Fresh"
    assert homes["lt_core.callbacks.Callback"] == homes["lt_core.Callback"] == "lt_core.Callback"
    assert homes["lt_core.plugins.Precision"] == "lt_interface.PlainPrecision"
    assert {"lt_core.strategies", "lt_core.tasks", "lt_core.utilities.types"} <= {
        name.module for name in reference.names()
    }
    assert "lt_core.callbacks.Fresh: not in the reference" in reference.problems(set())


def test_what_was_built_is_read_from_the_inventory(check: Check, tmp_path: Path) -> None:
    """The names of Sphinx's inventory are those of Python objects, whatever else it lists."""
    lines = b"a.B py:class 1 api/a.html#$ -\na.B.c py:method 1 api/a.html#$ -\nindex std:doc -1 index.html Start\n"
    (tmp_path / "objects.inv").write_bytes(b"# 1\n# 2\n# 3\n# 4\n" + zlib.compress(lines))
    assert check("api_reference").built(tmp_path / "objects.inv") == {"a.B", "a.B.c"}


def test_a_page_that_the_code_does_not_print_is_found(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page with another text fails and names the command that writes it, after which it passes."""
    check_page = check("hook_table").check_page
    page = write(tmp_path / "flags.md", "old")
    monkeypatch.setattr("sys.argv", ["ci/flag_table.py"])
    assert check_page(page, "new") == 1
    assert "Run: python ci/flag_table.py --write" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["ci/flag_table.py", "--write"])
    assert check_page(page, "new") == 0
    assert page.read_text(encoding="utf-8") == "new"
