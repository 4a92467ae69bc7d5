"""Print the figures of the house: files, parts, lines and tests; fail where a limit is passed.

`python ci/figures.py --since REV` also lists the test functions that are gone since a revision, and compares the number
of assertions.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

from line_budget import check

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "packages/lt-core/src/lt_core"
PACKAGES = {
    "lt_core": (ROOT / "packages/lt-core/src", 24_847, ""),
    "lt_loggers": (ROOT / "packages/lt-loggers/src", 2_458, ""),
    "lt_interface without suites": (ROOT / "packages/lt-interface/src", 1_719, "testing"),
    "lt_accel": (ROOT / "packages/lt-accel/src", 3_818, ""),
}
ASSERTIONS = {"raises", "warns", "assert_close", "fail"}
# Names that a layer may import from one above it, for type checkers alone.
UPWARD = {"Trainer", "LightningModule", "LightningDataModule", "Callback", "Run"}


def layers() -> list[set[str]]:
    """Return the rooms of each layer of lt_core, the highest first, as import-linter's contract lists them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [contract] = [c for c in settings["tool"]["importlinter"]["contracts"] if c["id"] == "layers"]
    return [{room.strip() for room in layer.split(":")} for layer in contract["layers"]]


LAYERS = layers()


def sources(folder: Path) -> list[Path]:
    """Return the Python files below a folder."""
    return sorted(folder.rglob("*.py"))


def matches(pattern: str, folder: Path) -> list[str]:
    """Return ``file:line`` of each match of a pattern below a folder."""
    found = []
    for path in sources(folder):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{path.relative_to(ROOT)}:{number}"] * len(re.findall(pattern, line))
    return found


def parts_of_a_run() -> list[str]:
    """Return the fields of the class Run."""
    tree = ast.parse((CORE / "state/run.py").read_text(encoding="utf-8"))
    [run] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Run"]
    names = (node.target for node in run.body if isinstance(node, ast.AnnAssign))
    return [name.id for name in names if isinstance(name, ast.Name)]


def flags() -> list[str]:
    """Return the names of the trainer's flags: the annotated names of TrainerConfig."""
    tree = ast.parse((CORE / "config/flags.py").read_text(encoding="utf-8"))
    [config] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainerConfig"]
    names = [n.target.id for n in config.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return [name for name in names if name not in ("explicit", "problems")]


def places_of(flag: str) -> list[str]:
    """Return the files that declare a flag, beside those that use it: rows, rules and signature, not the loop."""
    declaring = [*sources(CORE / "config"), CORE / "trainer/trainer.py", ROOT / "docs/flags.md"]
    word = re.compile(rf"\b{flag}\b(?! *\()")
    found = []
    for path in declaring:
        if path.exists() and path.name not in ("rules.py", "legacy.py"):  # what excludes what is a use
            text = path.read_text(encoding="utf-8")
            if word.search(text.split("# ---", 1)[0] if path.name == "trainer.py" else text):
                found.append(str(path.relative_to(ROOT)))
    return found


def layer_of(module: str) -> int:
    """Return how deep the room of a module lies; the deepest is the lowest."""
    room = module.split(".")[1] if "." in module else ""
    return next((depth for depth, rooms in enumerate(LAYERS) if room in rooms), -1)


def upward_types() -> list[str]:
    """Return imports for type checkers that reach up for other names than the five that all may name."""
    found = []
    for path in sources(CORE):
        module = ".".join(path.relative_to(CORE.parent).with_suffix("").parts)
        if module == "lt_core.state.run":  # it names the parts of a run, whatever their rooms
            continue
        for block in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)):
                continue
            for node in block.body:
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lt_core."):
                    names = {alias.name for alias in node.names} - UPWARD
                    if names and layer_of(str(node.module)) < layer_of(module):
                        found.append(f"{path.relative_to(ROOT)}:{node.lineno} {', '.join(sorted(names))}")
    return found


def census(texts: dict[str, str]) -> tuple[Counter[str], Counter[str]]:
    """Return the test functions by name, and the number of assertions by package."""
    tests: Counter[str] = Counter()
    assertions: Counter[str] = Counter()
    for name, text in texts.items():
        package = name.split("/")[1] if name.startswith("packages/") else name.split("/")[0]
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                tests[node.name] += 1
            called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            assertions[package] += isinstance(node, ast.Assert) or called in ASSERTIONS
    return tests, assertions


def test_files(revision: str | None) -> dict[str, str]:
    """Return the texts of the test files by name, as they are or as they were at a revision."""
    patterns = ("packages/*/tests/**/*.py", "tests_integration/*.py")
    if revision is None:
        paths = [path for pattern in patterns for path in ROOT.glob(pattern)]
        return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in paths}

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout

    names = [n for n in git("ls-tree", "-r", "--name-only", revision).split("\n") if n.endswith(".py")]
    wanted = [n for n in names if "/tests/" in n or n.startswith("tests_integration/")]
    return {name: git("show", f"{revision}:{name}") for name in wanted}


def print_census(since: str | None) -> None:
    """Print how many tests there are, and what is gone since a revision."""
    tests, assertions = census(test_files(None))
    print(f"{sum(tests.values()):7,} test functions, {sum(assertions.values()):,} assertions: {dict(assertions)}")
    if since is not None:
        old_tests, old_assertions = census(test_files(since))
        print(f"{sum(old_tests.values()):7,} test functions, {sum(old_assertions.values()):,} assertions at {since}")
        gone = old_tests - tests
        print(f"{sum(gone.values()):7,} test functions gone since: {', '.join(sorted(gone)) or 'none'}")


def main() -> int:
    print_census(sys.argv[sys.argv.index("--since") + 1] if "--since" in sys.argv else None)
    rooms: Counter[str] = Counter()
    rows: list[tuple[str, int, int, list[str]]] = []
    for package, (folder, limit, left_out) in PACKAGES.items():
        total = 0
        for path in sources(folder):
            inside = path.relative_to(folder).parts
            if left_out and left_out in inside:
                continue
            count = check(path)[0]
            total += count
            if package == "lt_core":
                rooms[inside[1] if len(inside) > 2 else "lobby"] += count
        rows.append((f"code lines of {package}", total, limit, []))
    for room, count in rooms.most_common():
        print(f"{count:7,} code lines of lt_core/{room}")
    lobby = [path.name for path in CORE.glob("*.py")]
    everywhere = {flag: places for flag in flags() if len(places := places_of(flag)) > 3}
    rows += [
        ("files in the lobby of lt_core", len(lobby), 8, lobby),
        ("parts of a run", len(parts_of_a_run()), 25, []),
        *(
            (name, len(found), 0, found)
            for name, found in (
                ("questions whether a run has a part yet", matches(r"in (self\._)?run\.__dict__", CORE)),
                ("uses of trainer._run in callbacks", matches(r"trainer\._run\b", CORE / "callbacks")),
                ("imports upward for types", upward_types()),
            )
        ),
        ("flags declared in more than 3 files", len(everywhere), 0, [f"{f}: {p}" for f, p in everywhere.items()]),
    ]
    failed = False
    for name, count, limit, shown in rows:
        over = count > limit
        failed = failed or over
        print(f"{'OVER' if over else 'ok':>5}  {name:<45} {count:7,}  allowed {limit:,}")
        if over and shown:
            print(*(f"         {line}" for line in shown), sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
