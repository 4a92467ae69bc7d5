"""Check the rules of the house that no linter knows: the names of modules, and that every test says what it tests."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

# A thing lives in the room of the idea that it serves; these are the names of no idea.
NO_IDEA = {"utils", "util", "helpers", "helper", "common", "manager", "connector", "misc"}
TESTS = ["packages/*/tests/**/test_*.py", "tests_integration/**/test_*.py"]


def nameless(root: Path) -> list[str]:
    """Return the modules and folders whose name tells nothing."""
    found = []
    for path in sorted(root.glob("packages/*/src/**/*.py")):
        words = {word for part in path.relative_to(root).with_suffix("").parts[3:] for word in part.split("_")}
        found += [f"{path.relative_to(root)}: no module may be called {word}" for word in words & NO_IDEA]
    return found


def untold(root: Path) -> list[str]:
    """Return the tests without a sentence that names the behaviour."""
    found = []
    for path in sorted(p for place in TESTS for p in root.glob(place)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [c for c in tree.body if isinstance(c, ast.ClassDef) and c.name.startswith("Test")]
        for node in [*tree.body, *(method for c in classes for method in c.body)]:  # not a model's own test_step
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not node.name.startswith("test_"):
                continue
            if not (ast.get_docstring(node) or "").strip():
                found.append(f"{path.relative_to(root)}:{node.lineno}: {node.name} needs a sentence on what it tests")
    return found


def unmarked(root: Path) -> list[str]:
    """Return the packages that do not tell type checkers that they are typed."""
    sources = [p for p in root.glob("packages/*/src/*") if (p / "__init__.py").exists()]
    return [f"{p.relative_to(root)}: needs a py.typed" for p in sources if not (p / "py.typed").exists()]


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    problems = nameless(root) + untold(root) + unmarked(root)
    if problems:
        print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
