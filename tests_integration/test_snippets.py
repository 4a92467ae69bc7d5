"""Run every Python snippet of the README and the documentation, page by page."""

from __future__ import annotations

import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from lt_core.run.program import main

ROOT = Path(__file__).resolve().parents[1]
GUIDES = [ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md"]
PAGES = [ROOT / "README.md", *GUIDES, *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("packages/*/README.md"))]
FENCE = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def snippets(page: Path) -> list[tuple[int, str]]:
    """Return a page's snippets with the line on which each begins."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)), found.group(1)) for found in FENCE.finditer(text)]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return the commands that a page shows behind a ``$``, each with the lines of output below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(
        r"^```console\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    ):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found:
                found[-1][1].append(line)
    return found


def run(page: Path) -> dict[str, Any]:
    """Run a page's snippets one after the other, as a reader would who types them in.

    Those about a package of others that is not installed here are left out.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    with warnings.catch_warnings():
        # A reader's machine may warn of its own: cores, terminals.
        warnings.simplefilter("default")
        for line, snippet in snippets(page):
            try:
                exec(compile("\n" * line + snippet, str(page), "exec"), namespace)
            except ModuleNotFoundError as error:
                if page.name != "integrations.md" or str(error.name).startswith("lt_"):
                    raise
    return namespace


@pytest.mark.parametrize("page", [p for p in PAGES if snippets(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_snippets_of_the_page_run(page: Path) -> None:
    """What the page has a reader write works, from its first snippet to its last."""
    run(page)


def test_commands_of_the_page_of_the_command_line_run(
    own_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that the page shows works with the file that it shows, and ends with the lines that it shows."""
    page = ROOT / "docs" / "cli.md"
    (code,) = [code for _, code in snippets(page) if code.startswith("# my.py\n")]
    (own_folder / "my.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr("sys.path", [*sys.path])
    for command, expected in commands(page):
        words = shlex.split(command, comments=True)
        with monkeypatch.context() as patch:
            while "=" in words[0]:
                patch.setenv(*words.pop(0).split("=", 1))
            target = words[words.index(">") + 1] if ">" in words else None
            patch.setattr("sys.argv", words[: words.index(">")] if target else words)
            patch.delitem(sys.modules, "my", raising=False)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("default")  # see run
                    status = main()
            except SystemExit as left:
                status = left.code
        seen = capsys.readouterr()
        assert (command, status, seen.err if status else "") == (
            command,
            2 if expected else 0,
            seen.err if expected else "",
        )
        assert [line for line in expected if line not in seen.err] == []
        if target:
            (own_folder / target).write_text(seen.out, encoding="utf-8")


def test_pages_with_snippets_are_found() -> None:
    """The runner sees the snippets: the README and the quickstart have some, and of two tabs the one that is ours."""
    assert snippets(ROOT / "README.md")
    assert len(snippets(ROOT / "docs" / "quickstart.md")) >= 4
    programs = [code for _, code in snippets(ROOT / "docs" / "migration.md")]
    assert "from lt_core.loggers import CSVLogger" in programs[0]
    assert not any("lightning.pytorch" in code for code in programs)


def test_readme_example_is_short_and_learns() -> None:
    """The README's example has at most twenty lines of code and finds the line that it looks for."""
    ((_, code),) = snippets(ROOT / "README.md")[:1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    names = run(ROOT / "README.md")
    trainer = names["trainer"]
    assert trainer.callback_metrics["train_loss"] < 1e-2
    assert len(trainer.history["train_loss"]) == trainer.current_epoch  # where no 50th step is due, the last one
    assert (Path("lightning_logs") / "version_0" / "metrics.csv").is_file()


def test_no_page_names_a_file_that_is_not_there() -> None:
    """Every link of the pages to a place in the repository leads somewhere."""
    lost = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not (page.parent / target).exists():
                lost.append(f"{page.relative_to(ROOT)}: {target}")
    assert not lost


def test_the_guides_name_tests_and_programs_that_are_there() -> None:
    """Each test, test file and program of `ci` that a guide for contributors names exists."""
    tests = [*ROOT.glob("packages/*/tests/test_*.py"), *ROOT.glob("tests_integration/test_*.py")]
    known = {path.name for path in tests}
    known |= {name for path in tests for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))}
    for page in GUIDES:
        text = page.read_text(encoding="utf-8")
        assert set(re.findall(r"\btest_\w+(?:\.py)?", text)) <= known
        assert all((ROOT / place).exists() for place in re.findall(r"\bci/\w+(?:\.\w+)?", text))
