"""Run every check of the repository, each in an environment of its own.

The packages are tested as users get them: built wheels, installed beside nothing but what they ask for.
docs/sessions.md says what each session covers; `bash ci/test` runs the default ones on a fresh machine.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|venv"
nox.options.error_on_missing_interpreters = False
# Tests come last, so that their closing lines are what a reader sees first.
nox.options.sessions = [
    "lint",
    "types",
    "imports",
    "build",
    "budgets",
    "isolation",
    "docs",
    "compat",
    "tests",
    "oldest",
    "integration",
]

ROOT = Path(__file__).parent
DIST = ROOT / ".nox" / "dist"
REPORTS = ROOT / ".nox" / "reports"
CONSTRAINTS = "ci/constraints.txt"
PACKAGES = ["lt-interface", "lt-core", "lt-loggers", "lt-accel"]
PYTEST = ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"]
SOURCES = [f"packages/{name}/src" for name in PACKAGES]
# Tests that mostly run in one process each; those of several ranks have the machine to themselves.
BY_TWO = ["-n", "2", "--dist", "worksteal"]
# What a package's own tests need beyond what it asks for itself: its optional parts.
EXTRAS = {
    "lt-interface": "testing",
    "lt-core": "plot,metrics,tqdm,cli",
    "lt-loggers": "tensorboard,tensorboardx,wandb,mlflow",
}
# The real server that the MLflow logger is tested with, and figures to show.
TRACKERS = ["mlflow", "matplotlib", "psutil"]
# What users bring along, and is light; `ecosystem` has the rest.
LIGHT = ["scikit-learn", "hydra-core", "optuna", "torchdata", "webdataset"]
TOGETHER = [*PYTEST, *TRACKERS, *LIGHT]
# Without these some public names are not there: loggers are only there beside their trackers.
NAMED = ["pytest", "jsonargparse[signatures]", "tensorboard", "wandb", "mlflow-skinny"]
TORCH_TESTED = {"lt-interface", "lt-core", "lt-loggers", "lt-accel"}

# uv leaves compiling to the first import: without a trace of it, every process would compile PyTorch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# uv reads none of pip's settings; a folder of wheels named to pip is named to uv too.
if "UV_FIND_LINKS" not in os.environ and os.environ.get("PIP_FIND_LINKS"):
    os.environ["UV_FIND_LINKS"] = os.environ["PIP_FIND_LINKS"].replace(" ", ",")


def wheel(name: str) -> Path:
    """Return the wheel that the build session left."""
    found = sorted(DIST.glob(f"{name.replace('-', '_')}-*.whl"))
    if len(found) != 1:
        raise FileNotFoundError(f"{DIST}: expected one wheel of {name}, found {len(found)}. Run: nox -s build")
    return found[0]


def install(session: nox.Session, packages: list[str], *others: str, extras: bool = True, torch: bool = True) -> None:
    """Install wheels of ours with their needs, and other packages, under the constraints."""
    wanted = [f"{wheel(n)}[{EXTRAS[n]}]" if extras and n in EXTRAS else str(wheel(n)) for n in packages]
    if torch:
        # First and pinned, so that nothing after it picks another build.
        session.install("-c", CONSTRAINTS, "torch", "numpy")
    session.install("-c", CONSTRAINTS, *wanted, *others)
    # The version stays the same from build to build: say that the contents may not have.
    session.install("--no-deps", "--force-reinstall", *(str(wheel(n)) for n in packages))


def pytest(session: nox.Session, report: str, *arguments: str, select: str = "not slow and not gpu") -> None:
    """Run pytest; a selection of the user's own may match nothing, ours may not."""
    REPORTS.mkdir(parents=True, exist_ok=True)
    command = ["python", "-m", "pytest", "-q", "-m", select, "--timeout", "600", "--durations", "5"]
    command += [f"--junit-xml={REPORTS / report}.xml", *arguments, *session.posargs]
    # Two cores are shared: more threads than one a process only take time from one another.
    environment = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    nothing_collected = 5
    session.run(*command, success_codes=[0, nothing_collected], env=environment)
    if 'tests="0"' in (REPORTS / f"{report}.xml").read_text(encoding="utf-8") and not session.posargs:
        session.error(f"no test ran in {' '.join(arguments)}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, names and the budgets of lines."""
    session.install("-c", CONSTRAINTS, "ruff", "tomli; python_version < '3.11'")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("python", "ci/line_budget.py")
    session.run("python", "ci/house_rules.py")
    session.run("python", "ci/figures.py")


@nox.session(requires=["build"])
def types(session: nox.Session) -> None:
    """Check all packages with mypy, strictly."""
    install(session, PACKAGES, "mypy", "types-PyYAML", "nox", "scikit-learn", "packaging", "coverage")
    session.run("mypy", *SOURCES, "ci", "examples", "noxfile.py")


@nox.session
def imports(session: nox.Session) -> None:
    """Check who may import whom, and that no imports go in a circle."""
    session.install("-c", CONSTRAINTS, "import-linter")
    path = os.pathsep.join(str(ROOT / source) for source in SOURCES)
    session.run("lint-imports", "--no-cache", "--no-logo", env={"PYTHONPATH": path})
    session.run("python", "ci/import_cycles.py", env={"PYTHONPATH": path})


@nox.session
def build(session: nox.Session) -> None:
    """Build the wheel of every package."""
    session.install("-c", CONSTRAINTS, "hatchling")
    shutil.rmtree(DIST, ignore_errors=True)
    for name in PACKAGES:
        with session.chdir(f"packages/{name}"):
            session.run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", str(DIST), silent=True)


@nox.session(requires=["build"])
def budgets(session: nox.Session) -> None:
    """Check calls and frames a step, the cost of importing, and the public names."""
    install(session, PACKAGES, "packaging", *NAMED, extras=False)
    session.run("python", "ci/call_budget.py")
    session.run("python", "ci/import_budget.py")
    session.run("python", "ci/api_diff.py")


@nox.session(requires=["build"])
def isolation(session: nox.Session) -> None:
    """Train with lt-core where nothing is installed but what it declares."""
    install(session, ["lt-interface", "lt-core"], "packaging", extras=False)
    session.run("python", "ci/isolation.py", "--strict")


@nox.session(requires=["build"])
@nox.parametrize("package", PACKAGES, ids=PACKAGES)
def tests(session: nox.Session, package: str) -> None:
    """Test one package with only its own needs and the interface beside it."""
    siblings = dict.fromkeys(["lt-interface", package])
    with_torch = package in TORCH_TESTED
    trackers = TRACKERS if package == "lt-loggers" else []
    install(session, [*siblings] if with_torch else [package], *PYTEST, *trackers, torch=with_torch)
    pytest(session, package, *BY_TWO, f"packages/{package}/tests")


@nox.session(requires=["build"])
def oldest(session: nox.Session) -> None:
    """Test lt-core with the oldest versions that it accepts: the test files that import one of those packages.

    PyTorch stays at the pinned version, since the old ones exist for Linux only with gigabytes of CUDA;
    `nox -s oldest -- --torch 2.6.0` takes a real old one, and all tests.
    """
    version = session.run("python", "-c", "import sys; print(*sys.version_info[:2])", silent=True)
    if tuple(map(int, str(version).split())) >= (3, 12):
        session.skip("the oldest versions have no wheels for Python 3.12 and newer; run it with 3.10 or 3.11")
    settings = nox.project.load_toml("packages/lt-core/pyproject.toml")["project"]
    extras = settings["optional-dependencies"]
    needs = [*settings["dependencies"], *extras["metrics"], *extras["plot"], *extras["cli"]]
    needs = [need for need in needs if not need.startswith(("torch>", "lt-"))]
    pins = [re.sub(r">=([\d.]+).*", r"==\1", need) for need in needs]
    tests = ROOT / "packages/lt-core/tests"
    if "--torch" in session.posargs:
        at = session.posargs.index("--torch")
        torch = f"torch=={session.posargs[at + 1]}"
        del session.posargs[at : at + 2]
        session.install(torch)
        files = [tests]
    else:
        names = [re.split(r"[\[>]", need)[0].lower().removeprefix("py") for need in needs]
        used = re.compile(rf"(import |from |importorskip\(\")({'|'.join(names)})\b|\brich\b")
        files = [path for path in sorted(tests.glob("test_*.py")) if used.search(path.read_text(encoding="utf-8"))]
        session.install("-c", CONSTRAINTS, "torch")
    # What old matplotlib calls in pyparsing warns in its newer versions.
    session.install(*pins, "pyparsing<3.1", *PYTEST)
    session.install("--no-deps", "--force-reinstall", str(wheel("lt-interface")), str(wheel("lt-core")))
    pytest(session, "lt-core-oldest", *BY_TWO, *map(str, files))


@nox.session(requires=["build"])
def compat(session: nox.Session) -> None:
    """Check that every package works beside each release of lt-interface that it accepts."""
    session.install("-c", CONSTRAINTS, "torch", "numpy", "hatchling", "packaging", "pytest")
    install(session, PACKAGES, extras=False)
    session.run("python", "ci/compat.py", str(DIST))


@nox.session(requires=["build"])
def integration(session: nox.Session) -> None:
    """Test the packages together: strategies, precisions and loggers, the README, the quickstart, the snippets."""
    install(session, PACKAGES, *TOGETHER, "import-linter")
    # What core says of its siblings' plugins can only be tested beside them.
    alone = [f"packages/lt-core/tests/{name}.py" for name in ("test_flag_types", "test_no_waiting")]
    ranks: list[str] = []
    for path in sorted(ROOT.glob("tests_integration/test_*.py")):
        of_ranks = re.search("ddp|ranks", path.read_text(encoding="utf-8"))
        (ranks if of_ranks else alone).append(str(path.relative_to(ROOT)))
    pytest(session, "integration", "-n", "2", "--dist", "loadfile", *alone)  # one server of trackers, not two
    pytest(session, "integration-ranks", *ranks)


@nox.session(requires=["build"])
def ecosystem(session: nox.Session) -> None:
    """Run programs of users beside what is too heavy for each check: Hugging Face's transformers, torch_geometric."""
    install(session, PACKAGES, *PYTEST, *LIGHT, "transformers", "torch_geometric")
    days = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests_integration/test_day_one_*.py"))
    pytest(session, "ecosystem", *days, "tests_integration/test_snippets.py")


@nox.session(requires=["build"])
def faults(session: nox.Session) -> None:
    """Run the slow tests: kills at random moments, trackers that are away, full disks, long runs."""
    install(session, PACKAGES, *TOGETHER, "pytorch-lightning")
    pytest(session, "faults", "packages/lt-core/tests", "packages/lt-loggers/tests", "tests_integration", select="slow")


@nox.session(requires=["build"])
def mutation(session: nox.Session) -> None:
    """Break lt-core in 200 small ways, one at a time; the tests must notice 95 % of them. Takes hours."""
    install(session, PACKAGES, *TOGETHER, "coverage", "pytest-cov")
    session.run("python", "ci/mutation.py", *session.posargs)


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """Build the documentation without a warning; its tables must be the code's, its reference must lack no name."""
    install(session, PACKAGES, *NAMED, "sphinx", "furo", "myst-parser", "sphinx-design", extras=False)
    session.run("python", "ci/hook_table.py")
    session.run("python", "ci/flag_table.py")
    session.run("sphinx-build", "-q", "-W", "--keep-going", "-b", "html", "docs", "docs/_build/html")
    session.run("python", "ci/api_reference.py", "docs/_build/html")


@nox.session
def dev(session: nox.Session) -> None:
    """Make an environment to work in, at .nox/dev: the packages as they lie here, and every tool."""
    session.install("-c", CONSTRAINTS, "torch", "numpy")
    sources = [f"./packages/{name}" + (f"[{EXTRAS[name]}]" if name in EXTRAS else "") for name in PACKAGES]
    tools = ["ruff", "mypy", "types-PyYAML", "import-linter", "nox", "pre-commit", "packaging", "scikit-learn"]
    editable = [word for source in sources for word in ("-e", source)]
    session.install("-c", CONSTRAINTS, *editable, *PYTEST, *TRACKERS, *tools)


@nox.session(requires=["build"])
def bench(session: nox.Session) -> None:
    """Print the benchmarks' tables, ours beside PyTorch Lightning, Ignite and Accelerate."""
    rivals = [] if "--alone" in session.posargs else ["pytorch-lightning", "pytorch-ignite", "accelerate"]
    install(session, PACKAGES, *rivals, extras=False)
    for name in ("overhead", "memory", "resume_skip", "async_saves", "placing"):
        session.run("python", f"ci/benchmarks/{name}.py")
    session.run("python", "ci/benchmarks/agree.py")
    session.run("python", "ci/benchmarks/ranks.py")
    session.run("python", "ci/benchmarks/rank_ends.py", "--tries", "1")
    session.run("python", "ci/benchmarks/hanging_tracker.py", "--check")
