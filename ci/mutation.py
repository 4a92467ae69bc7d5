"""Break the reliability code in one small way at a time, and count how many of the breaks the tests notice.

    python ci/mutation.py --count 200            the sample of seed 0; nox -s mutation does the same
    python ci/mutation.py --seed 7 --rooms data  another sample, from one room
    python ci/mutation.py --show                 list the sample and run nothing
    python ci/mutation.py --reuse --resume       go on after a stop, and try the survivors again

Each mutant is one changed place in a copy of lt_core that stands first on PYTHONPATH. Only the tests that ran the
changed line are tried on it (one run of all quick tests under coverage finds them), the quickest first, up to the
first failure. A test that hangs counts as a failure. Each verdict is appended to .nox/mutation-work/verdicts.jsonl when
it is known. Mutants that change nothing that anybody could see are named in ci/mutation_equivalents.txt, each with its
reason, and left out of the score.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from queue import Queue
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "packages/lt-core/src"
PACKAGE = SOURCE / "lt_core"
RANKS = ROOT / "packages/lt-interface/src/lt_interface/testing"  # what starts processes for tests
TESTS = ["packages/lt-core/tests", "tests_integration"]
WORK = ROOT / ".nox" / "mutation-work"
VERDICTS = WORK / "verdicts.jsonl"
EQUIVALENTS = ROOT / "ci/mutation_equivalents.txt"
ROOMS = [
    "loops",
    "checkpoint",
    "data",
    "metrics",
    "state",
    "tracking",
    "callbacks/checkpointing",
    "callbacks/early_stopping.py",
]
SECONDS_A_TEST = 60  # beside four times what the slowest took
# Beside what its tests take: starting Python, a busy machine, a test that hangs where no timeout reaches.
SECONDS_BESIDE = 120
BOUNDARIES = {ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">")}
OPPOSITES = {
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: (r"is\s+not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: (r"not\s+in", "in"),
}
# What only says something to people: another wording is no fault.
SPOKEN = {"warn", "info", "Problem", "debug", "warning"}


@dataclass(frozen=True)
class Mutant:
    """One changed place of one file.

    Attributes:
        path: The file, relative to the package.
        function: Qualified name of the function that the place is in.
        line: Line of the place, from 1 on.
        kind: What was done: boundary, opposite, logic, call, assignment, return, constant.
        start: Offset of the first replaced byte in the file.
        end: Offset behind the last replaced byte.
        before: What stood there.
        after: What stands there now.
        nth: Which of the function's places of this kind and text it is, from 1 on.
    """

    path: str
    function: str
    line: int
    kind: str
    start: int
    end: int
    before: str
    after: str
    nth: int = 1

    @property
    def key(self) -> str:
        """Return a name that stays the same when lines above the place move."""
        change = " ".join(f"{self.before} -> {self.after}".split())
        return f"{self.path} {self.function} {self.kind}: {change}" + (f" ({self.nth})" if self.nth > 1 else "")


class Finder(ast.NodeVisitor):
    """Walk through one file that collects the places that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path.relative_to(PACKAGE).as_posix()
        self.source = path.read_bytes()
        self.lines = [0]
        for line in self.source.splitlines(keepends=True):
            self.lines.append(self.lines[-1] + len(line))
        self.names: list[str] = []
        self.found: list[Mutant] = []
        self.seen: Counter[str] = Counter()

    def span(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        """Return the offsets of a node in the file."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.lines[node.lineno - 1] + node.col_offset, self.lines[node.end_lineno - 1] + node.end_col_offset

    def add(self, node: ast.expr | ast.stmt, kind: str, after: str, span: tuple[int, int] | None = None) -> None:
        """Note one place, with what is to stand there."""
        start, end = span or self.span(node)
        before = self.source[start:end].decode()
        line = self.source.count(b"\n", 0, start) + 1
        mutant = Mutant(self.path, ".".join(self.names), line, kind, start, end, before, after)
        self.seen[mutant.key] += 1
        self.found.append(replace(mutant, nth=self.seen[mutant.key]))

    def text(self, node: ast.expr) -> str:
        """Return the source of an expression."""
        start, end = self.span(node)
        return self.source[start:end].decode()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Go through the body alone: defaults and annotations are the signature's, which other checks watch."""
        self.names.append(node.name)
        if not any(ast.unparse(d) in {"overload", "abstractmethod"} for d in node.decorator_list):
            for statement in node.body:
                self.visit(statement)
        self.names.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """Keep the name for what is inside."""
        self.names.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.names.pop()

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave errors' texts as they are; that they are raised is the condition's mutant."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Visit the value without the annotation."""
        if node.value is not None and self.names:
            self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave formatted text as it is."""

    def visit_Call(self, node: ast.Call) -> None:
        """Pass over what only speaks."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name not in SPOKEN:
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        """Leave out a call that is made for its effect."""
        if isinstance(node.value, ast.Call) and self.names and "super()" not in self.text(node.value):
            name = node.value.func
            spoken = name.attr if isinstance(name, ast.Attribute) else getattr(name, "id", "")
            if spoken not in SPOKEN:
                self.add(node, "call", "pass")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        """Leave out an assignment to an attribute, outside of constructors."""
        if self.names and isinstance(node.targets[0], ast.Attribute) and self.names[-1] != "__init__":
            self.add(node, "assignment", "pass")
        if self.names:
            self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """Leave out a count."""
        self.add(node, "assignment", "pass")
        self.generic_visit(node)

    def visit_If(self, node: ast.If) -> None:
        """Turn the condition round."""
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            if not isinstance(node.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                self.add(node.test, "opposite", f"not ({self.text(node.test)})")
            self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        """Shift a bound, or turn a comparison round."""
        left: ast.expr = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            kind = "boundary" if type(operator) in BOUNDARIES else "opposite"
            old, new = {**BOUNDARIES, **OPPOSITES}[type(operator)]
            between = self.span(left)[1], self.span(right)[0]
            if found := re.search(old.encode(), self.source[slice(*between)]):
                start = between[0] + found.start()
                whole = self.text(node)
                at = start - self.span(node)[0]
                length = found.end() - found.start()
                self.add(node, kind, whole.encode()[:at].decode() + new + whole.encode()[at + length :].decode())
            left = right
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        """Exchange "and" and "or"."""
        other = " or " if isinstance(node.op, ast.And) else " and "
        self.add(node, "logic", f"({other.join(f'({self.text(value)})' for value in node.values)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        """Leave out a "not"."""
        if isinstance(node.op, ast.Not):
            self.add(node, "opposite", f"({self.text(node.operand)})")
            self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        """Exchange plus and minus where numbers are counted."""
        numbers = any(isinstance(side, ast.Constant) and type(side.value) is int for side in (node.left, node.right))
        if isinstance(node.op, ast.Add | ast.Sub) and numbers:
            sign = "-" if isinstance(node.op, ast.Add) else "+"
            self.add(node, "boundary", f"({self.text(node.left)} {sign} {self.text(node.right)})")
            self.visit(node.left)
            self.visit(node.right)
        elif not isinstance(node.op, ast.BitOr):
            self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        """Visit what is indexed; an index is part of a structure."""
        self.visit(node.value)

    def visit_Return(self, node: ast.Return) -> None:
        """Return nothing; where what is returned is as false as None, its type is checked elsewhere."""
        if node.value is not None and not (isinstance(node.value, ast.Constant) and not node.value.value):
            self.add(node.value, "return", "None")
            self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Make a number one larger, a truth its opposite."""
        if not self.names:
            return
        if isinstance(node.value, bool):
            self.add(node, "constant", str(not node.value))
        elif isinstance(node.value, int):
            self.add(node, "boundary", str(node.value + 1))


def mutants(rooms: list[str]) -> list[Mutant]:
    """Return every mutant of some rooms."""
    found: list[Mutant] = []
    for room in rooms:
        place = PACKAGE / room
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            finder = Finder(path)
            finder.visit(ast.parse(finder.source))
            found += finder.found
    return found


def _changed(source: bytes, mutant: Mutant) -> bytes:
    return source[: mutant.start] + mutant.after.encode() + source[mutant.end :]


def _compiles(mutant: Mutant) -> bool:
    """Return whether a mutant is a program, and another one."""
    source = (PACKAGE / mutant.path).read_bytes()
    try:
        return ast.dump(ast.parse(_changed(source, mutant))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def equivalents() -> set[str]:
    """Return the keys of the mutants that nobody could tell from the code; a reason follows each after a #."""
    lines = EQUIVALENTS.read_text(encoding="utf-8").splitlines() if EQUIVALENTS.exists() else []
    return {line.split("  #")[0].strip() for line in lines if line and not line.startswith("#")}


def drawn(rooms: list[str], seed: int, count: int) -> list[Mutant]:
    """Return some mutants of some rooms; which ones depends on each one's key alone, so that other code may change."""
    known = equivalents()
    everything = [mutant for mutant in mutants(rooms) if mutant.key not in known]
    everything.sort(key=lambda mutant: sha256(f"{seed} {mutant.key}".encode()).digest())
    sample = list(islice(filter(_compiles, everything), count))
    print(f"{len(sample)} of {len(everything)} mutants, seed {seed}")
    return sample


def cover(workers: int) -> None:
    """Run all quick tests once and keep which test ran which line."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(workers), "-m", "not slow and not gpu", *TESTS]
    command += [
        f"--cov={PACKAGE}",
        f"--cov={RANKS}",
        "--cov-context=test",
        "--cov-report=",
        f"--junitxml={WORK / 'tests.xml'}",
    ]
    WORK.mkdir(parents=True, exist_ok=True)
    environment = _environment(SOURCE) | {"COVERAGE_FILE": str(WORK / "coverage")}
    if subprocess.run(command, check=False, cwd=ROOT, env=environment).returncode:
        raise SystemExit("The tests fail without any change: nothing can be said about mutants. Mend them first.")


def _environment(source: Path) -> dict[str, str]:
    paths = [str(source), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}


class Coverage:
    """Which tests ran which lines, and how long each took."""

    def __init__(self) -> None:
        from coverage import CoverageData

        data = CoverageData(str(WORK / "coverage"))
        data.read()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        for case in ElementTree.parse(WORK / "tests.xml").iter("testcase"):
            self._seconds[_plain(f"{case.get('classname')}.{case.get('name')}")] += float(case.get("time", 0.0))
        self._all: set[str] = set()
        self._tests: dict[str, dict[int, set[str]]] = {}
        for name in data.measured_files():
            lines = data.contexts_by_lineno(name)
            by_line = {
                line: {re.split(r"[|\[]", c)[0] for c in contexts if "::" in c} for line, contexts in lines.items()
            }
            self._tests[name] = by_line
            self._all |= {test for tests in by_line.values() for test in tests}
        # What ran nothing of the package in its own process may have done so in others, and what started ranks did.
        plain = set(map(_plain, self._all))
        self._elsewhere = {_node(name) for name in self._seconds if name not in plain}
        for tests in self._tests.get(str(RANKS / "ranks.py"), {}).values():
            self._elsewhere |= tests

    def seconds(self, test: str) -> float:
        """Return how long a test took, all its parameters together."""
        return self._seconds[_plain(test)]

    def tests(self, mutant: Mutant) -> list[str]:
        """Return the tests to try, the quickest first, and last those that work in other processes.

        A line that no test ran in its own process may have run in a rank or a child: every test that ran
        anything of the file is tried, and all of the integration tests.
        """
        lines = self._tests.get(str(PACKAGE / mutant.path), {})
        found = lines.get(mutant.line, set())
        if not found:
            found = {test for tests in lines.values() for test in tests}
            found |= {test for test in self._all if test.startswith("tests_integration")}
        return [*sorted(found, key=lambda test: (self.seconds(test), test)), *sorted(self._elsewhere - found)]


def _node(name: str) -> str:
    """Return what pytest calls a test whose plain name is given."""
    names = name.split(".")
    file = next(i for i, part in enumerate(names) if part.startswith("test_")) + 1
    return "::".join([f"{'/'.join(names[:file])}.py", *names[file:]])


def _plain(name: str) -> str:
    """Return a test's name without its parameters, spelled alike for both of pytest's reports."""
    return name.partition("[")[0].replace(".py", "").replace("::", ".").replace("/", ".")


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        key: The mutant's.
        killer: The test that failed, "hang" where none ended; empty for a survivor.
        tests: How many tests were to be tried.
        seconds: How long it took.
    """

    key: str
    killer: str
    tests: int
    seconds: float


def judge(mutant: Mutant, coverage: Coverage, place: Path) -> Verdict:
    """Try the tests on a mutant, in a copy of the sources that is put right again afterwards."""
    path = place / "lt_core" / mutant.path
    source = path.read_bytes()
    tests = coverage.tests(mutant)
    selection, output = place / "tests.txt", place / "output.txt"
    selection.write_text("\n".join(tests), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow and not gpu", "--tb=line"]
    slowest = max(map(coverage.seconds, tests), default=0.0)
    command += [f"--timeout={SECONDS_A_TEST + 4 * slowest:.0f}"]
    command += ["--hypothesis-profile=ci"]  # the same examples each time, however slow
    command += [f"--basetemp={place / 'tmp'}", f"@{selection}"]
    limit = SECONDS_BESIDE + 4 * sum(map(coverage.seconds, tests))
    started = time.monotonic()
    path.write_bytes(_changed(source, mutant))
    try:
        with output.open("wb") as sink:
            process = subprocess.Popen(
                command, cwd=ROOT, env=_environment(place), stdout=sink, stderr=sink, start_new_session=True
            )
            try:
                killer = "" if process.wait(limit) == 0 else "failure"
            except subprocess.TimeoutExpired:
                killer = "hang"
            finally:
                _end(process)
    finally:
        path.write_bytes(source)
    said = re.search(r"^(?:FAILED|ERROR) (\S+)", output.read_text("utf-8", "replace"), re.MULTILINE)
    killer = said[1] if said and killer else killer
    return Verdict(mutant.key, killer, len(tests), round(time.monotonic() - started, 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(sample: list[Mutant], workers: int) -> Iterator[tuple[Mutant, Verdict]]:
    """Judge each mutant of a sample, several at once; yield it with its verdict."""
    coverage = Coverage()
    places: Queue[Path] = Queue()
    for number in range(workers):
        place = WORK / f"worker-{number}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(SOURCE, place, ignore=shutil.ignore_patterns("__pycache__"))
        places.put(place)

    def one(mutant: Mutant) -> tuple[Mutant, Verdict]:
        place = places.get()
        try:
            return mutant, judge(mutant, coverage, place)
        finally:
            places.put(place)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, sample)


def known_verdicts() -> dict[str, Verdict]:
    """Return the verdicts that earlier runs wrote, by the mutants' keys; the last one of each counts."""
    lines = VERDICTS.read_text(encoding="utf-8").splitlines() if VERDICTS.exists() else []
    return {verdict.key: verdict for verdict in (Verdict(**json.loads(line)) for line in lines)}


def verdicts(sample: list[Mutant], workers: int, resume: bool) -> Iterator[tuple[Mutant, Verdict]]:
    """Yield each mutant with its verdict: those that an earlier run saw killed first, if it is gone on with."""
    earlier = known_verdicts() if resume else {}
    killed = [mutant for mutant in sample if mutant.key in earlier and earlier[mutant.key].killer]
    yield from ((mutant, earlier[mutant.key]) for mutant in killed)
    for mutant, verdict in run([mutant for mutant in sample if mutant not in killed], workers):
        with VERDICTS.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(asdict(verdict)) + "\n")
        yield mutant, verdict


def main() -> int:
    """Run a sample, print the score by kind and the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="how many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", nargs="+", default=ROOMS, help="folders or files of lt_core")
    parser.add_argument("--workers", type=int, default=2, help="mutants at once")
    parser.add_argument("--least", type=float, default=0.95, help="smallest share of killed mutants that passes")
    parser.add_argument("--reuse", action="store_true", help="take the last run's coverage")
    parser.add_argument("--resume", action="store_true", help="try only what no earlier run saw killed")
    parser.add_argument("--show", action="store_true", help="list the sample and run nothing")
    given = parser.parse_args()
    sample = drawn(given.rooms, given.seed, given.count)
    if given.show:
        print("\n".join(f"{mutant.path}:{mutant.line} {mutant.key}" for mutant in sample))
        return 0
    if not given.reuse or not (WORK / "coverage").exists():
        cover(given.workers)
    kinds: dict[str, Counter[bool]] = defaultdict(Counter)
    survivors = []
    for mutant, verdict in verdicts(sample, given.workers, given.resume):
        kinds[mutant.kind][not verdict.killer] += 1
        if not verdict.killer:
            survivors.append(mutant)
            print(f"survived  {mutant.path}:{mutant.line}  {mutant.key}", flush=True)
    for kind, counts in sorted(kinds.items()):
        print(f"{kind:12} {counts[False]:4} of {counts.total():4} killed")
    score = 1 - len(survivors) / len(sample)
    print(f"score        {score:.3f}, at least {given.least}")
    return int(score < given.least)


if __name__ == "__main__":
    sys.exit(main())
