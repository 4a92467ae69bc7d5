"""Check the rules of the house that no linter knows: names of modules, a sentence a test, the words of docstrings."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

# A thing lives in the room of the idea that it serves; these are the names of no idea.
NO_IDEA = {"utils", "util", "helpers", "helper", "common", "manager", "connector", "misc"}
# Names that other code imports from, as it is.
FACES = {"model_helpers.py"}
TESTS = ["packages/*/tests/**/test_*.py", "tests_integration/**/test_*.py"]
# Where words are checked.
WORDED = ["packages/*/src", "packages/lt-interface/tests"]
# What is not written, and what is written in its place.
ODD = {
    r"\bcan not\b": "write cannot",
    r"\b(told|tells)\b": "write reported and reports, or warned, given, named",
    r"\b(go(es)?|went) before\b": "write takes precedence over, or is called before",
}
ODD_STARTS = {"Be": "name the thing: a noun phrase", "Say": "name the thing, or write Report, Return or Describe"}


def nameless(root: Path) -> list[str]:
    """Return the modules and folders whose name says nothing."""
    found = []
    for path in sorted(root.glob("packages/*/src/**/*.py")):
        words = {word for part in path.relative_to(root).with_suffix("").parts[3:] for word in part.split("_")}
        found += [
            f"{path.relative_to(root)}: no module may be called {word}"
            for word in words & NO_IDEA
            if path.name not in FACES
        ]
    return found


def undescribed(root: Path) -> list[str]:
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


def odd_words(root: Path) -> list[str]:
    """Return the odd words in the files and docstrings of the places whose words are checked."""
    found = []
    for path in sorted(p for place in WORDED for p in root.glob(f"{place}/**/*.py")):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(root)
        for number, line in enumerate(source.split("\n"), 1):
            found += [f"{where}:{number}: {fix}" for odd, fix in ODD.items() if re.search(odd, line, re.IGNORECASE)]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = (ast.get_docstring(node) or "").partition(" ")[0]
                if first in ODD_STARTS:
                    number = node.body[0].lineno
                    found.append(f"{where}:{number}: no docstring begins with {first}; {ODD_STARTS[first]}")
    return found


def unmarked(root: Path) -> list[str]:
    """Return the packages that lack the mark of typed packages."""
    sources = [p for p in root.glob("packages/*/src/*") if (p / "__init__.py").exists()]
    return [f"{p.relative_to(root)}: needs a py.typed" for p in sources if not (p / "py.typed").exists()]


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    problems = nameless(root) + undescribed(root) + odd_words(root) + unmarked(root)
    if problems:
        print(*problems, sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
