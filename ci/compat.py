"""Check that every package works beside each release of lt-interface that its requirement admits.

The installed one is tried first; releases are then built from their tags (`lt-interface-v0.1.0`), oldest first, into a
folder that shadows the installed one. A version of the changelog that a package does not admit is listed with the
reason, which is the first paragraph of the version after it.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import requires, version
from itertools import pairwise
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
DEPENDANTS = {"lt-core": "lt_core", "lt-loggers": "lt_loggers", "lt-accel": "lt_accel"}
SMOKE = """
import {module}
from lt_interface import registry
from importlib.metadata import entry_points
names = [(g, p.name) for g in entry_points().groups if g.startswith("lt.")
         for p in entry_points(group=g) if p.dist.name == "{package}"]
kinds = {{r.group: r for r in vars(registry).values() if isinstance(r, registry.Registry)}}
for group, name in names:
    kinds[group].get(name)
print(f"{package}: {{len(names)}} plugins load")
"""
TRAIN = """
import warnings
warnings.simplefilter("ignore")
from lt_core import Trainer
from lt_core.demos import BoringModel
Trainer(fast_dev_run=2, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False).fit(BoringModel())
print("lt-core: trains")
"""


def accepted(package: str) -> SpecifierSet:
    """Return the releases of the interface that a package says it works with."""
    for line in requires(package) or []:
        need = Requirement(line)
        if need.name == "lt-interface" and need.marker is None:
            return need.specifier
    raise SystemExit(f"{package} does not require lt-interface")


def releases() -> dict[str, str]:
    """Return the tags of released interfaces, by version."""
    command = ["git", "tag", "--list", "lt-interface-v*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    return {tag.removeprefix("lt-interface-v"): tag for tag in tags}


def changelog() -> list[tuple[str, str]]:
    """Return the versions of the interface's changelog, newest first, each with its section's first paragraph."""
    text = (ROOT / "packages/lt-interface/CHANGELOG.md").read_text(encoding="utf-8")
    sections = re.split(r"^## +(\S+)\n+", text, flags=re.MULTILINE)[1:]
    return [(v, " ".join(body.split("\n\n")[0].split())) for v, body in zip(sections[::2], sections[1::2], strict=True)]


def unpack(tag: str, folder: Path) -> Path:
    """Lay the interface's source of a tag into a folder."""
    place = "packages/lt-interface/src"
    done = subprocess.run(["git", "archive", tag, place], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder / place


def run(code: str, path: Path | None) -> None:
    """Run code in a fresh process, some folder shadowing what is installed."""
    environment = {**os.environ, "PYTHONPATH": str(path)} if path else dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, check=True)


def main() -> int:
    now = version("lt-interface")
    for package in DEPENDANTS:
        wanted = accepted(package)
        major, minor = (int(x) for x in now.split(".")[:2])
        limit = f"0.{minor + 1}" if major == 0 else str(major + 1)
        if now not in wanted or limit in wanted or not re.search(rf"<{re.escape(limit)}\b", str(wanted)):
            raise SystemExit(f"{package}: requires lt-interface{wanted}; needs to admit {now} and end below {limit}")
    with tempfile.TemporaryDirectory() as folder:
        pairs: dict[str, Path | None] = {now: None}
        for release, tag in sorted(releases().items()):
            if release != now:
                pairs[release] = unpack(tag, Path(folder) / release)
        for release, path in pairs.items():
            print(f"beside lt-interface {release}")
            for package, module in DEPENDANTS.items():
                if release in accepted(package):
                    run(SMOKE.format(package=package, module=module), path)
            if release in accepted("lt-core"):
                run(TRAIN, path)
    versions = changelog()
    for (_, change), (older, _) in pairwise(versions):
        for package in DEPENDANTS:
            fits = older in accepted(package)
            print(
                f"lt-interface {older} {'fits' if fits else 'does not fit'} {package}" + ("" if fits else f": {change}")
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
