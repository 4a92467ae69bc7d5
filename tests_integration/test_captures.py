"""Show again what the page of captures shows: the same words at the same places, but for how fast the machine was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from types import ModuleType

import pytest

Check = Callable[[str], ModuleType]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_the_page_shows_what_is_shown(check: Check) -> None:
    """Each program of the page, run now in its terminals or its pipe, gives what stands there."""
    captures = check("captures")
    page = captures.parts_of(captures.PAGE.read_text(encoding="utf-8"))
    assert page.keys() == {screen.title for screen in captures.SCREENS}
    for screen in captures.SCREENS:
        assert captures.masked(page[screen.title]) == captures.masked(captures.section(screen))


def test_no_line_of_the_page_is_wider_than_its_terminal(check: Check) -> None:
    """Every picture fits the columns that its heading names, and no word of it is cut."""
    captures = check("captures")
    for part in captures.parts_of(captures.PAGE.read_text(encoding="utf-8")).values():
        for heading, *blocks in (piece.split("```") for piece in part.split("\n\nIn ")[1:]):
            width = int(heading.split()[0]) if heading[0].isdigit() else 10**9
            shown = "".join(blocks[::2])
            assert all(len(line) <= width for line in shown.splitlines())
            assert "…" not in shown
