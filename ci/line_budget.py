"""Check that files, functions and classes stay small enough to be read in one sitting.

Only code lines count: no blanks, comments or docstrings.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FILE, FUNCTION, METHODS = 400, 60, 30
TEST_FILE = 500  # a test file holds one idea, and its cases are many
# Users know a hundred names of these: they are declared there, and their logic lives elsewhere.
NAMED = {
    ("lt_core/module.py", "LightningModule"),
    ("lt_core/callback.py", "Callback"),
    ("lt_core/trainer/trainer.py", "Trainer"),
}
PLACES = ["packages/*/src/**/*.py", "packages/*/tests/**/*.py", "ci/**/*.py", "tests_integration/**/*.py"]
PLACES += ["examples/**/*.py", "noxfile.py"]
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
SILENT |= {tokenize.ENCODING, tokenize.ENDMARKER}

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def docstring(node: ast.AST) -> ast.Expr | None:
    """Return the docstring's statement of a module, class or function."""
    body = getattr(node, "body", None)
    if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
        value = body[0].value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return body[0]
    return None


def code_lines(source: str, tree: ast.Module) -> set[int]:
    """Return the numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | Definition) and (text := docstring(node)) is not None:
            lines.difference_update(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def worked_methods(node: ast.ClassDef) -> int:
    """Count the methods whose body, docstring aside, has more than one statement."""
    methods = [child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)]
    return sum(len(m.body) - (docstring(m) is not None) > 1 for m in methods)


def check(path: Path) -> tuple[int, list[str]]:
    """Return a file's code lines and what is over the budget in it."""
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    lines = code_lines(source, tree)
    return len(lines), list(findings(path, tree, lines))


def findings(path: Path, tree: ast.Module, lines: set[int]) -> Iterator[str]:
    """Yield a line for each thing in a file that is over its budget."""
    allowed = TEST_FILE if "tests" in path.parts else FILE
    if len(lines) > allowed:
        yield f"{path}: {len(lines)} code lines, allowed are {allowed}. Split it by idea."
    for node in ast.walk(tree):
        if not isinstance(node, Definition):
            continue
        if isinstance(node, ast.ClassDef):
            exempt = any(str(path).endswith(file) and node.name == name for file, name in NAMED)
            if not exempt and (count := worked_methods(node)) > METHODS:
                yield f"{path}:{node.lineno}: class {node.name} has {count} methods that work, allowed are {METHODS}."
        else:
            count = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
            if count > FUNCTION:
                yield f"{path}:{node.lineno}: {node.name}() has {count} code lines, allowed are {FUNCTION}."


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    problems: list[str] = []
    totals: dict[str, int] = {}
    for path in sorted({p for place in PLACES for p in root.glob(place)}):
        inside = path.relative_to(root)
        count, found = check(path)
        problems += [line.replace(str(root) + "/", "") for line in found]
        part = "/".join(inside.parts[:3]) if inside.parts[0] == "packages" else inside.parts[0]
        totals[part] = totals.get(part, 0) + count
    for part, count in totals.items():
        print(f"{count:7,} code lines  {part}")
    print(f"{sum(n for p, n in totals.items() if p.endswith('/src')):7,} code lines in the packages together")
    if problems:
        print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
