"""Compare the public names of every package with the committed listing, so that none comes or goes unseen.

`python ci/api_diff.py --write` writes the listing anew: its diff is what a reviewer and a changelog need.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

LISTINGS = Path(__file__).parent / "api"
MODULES = {
    "lt-interface": ["lt_interface", "lt_interface.errors", "lt_interface.registry", "lt_interface.testing"],
    "lt-core": [
        "lt_core",
        "lt_core.callbacks",
        "lt_core.checkpoint",
        "lt_core.cli",
        "lt_core.data",
        "lt_core.demos",
        "lt_core.loggers",
        "lt_core.optim",
        "lt_core.plugins",
        "lt_core.profilers",
    ],
    "lt-loggers": ["lt_loggers"],
    "lt-accel": ["lt_accel"],
}


def public(module: ModuleType) -> list[str]:
    """Return the names that a module offers."""
    return sorted(getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")])


def parameters(function: Any) -> str:
    """Return a callable's parameters without their types: those differ in print from Python to Python."""
    try:
        given = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "(...)"
    words = []
    star = False
    for parameter in given:
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            words.append("*")
        star = star or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        stars = "*" * (parameter.kind is parameter.VAR_POSITIONAL) + "**" * (parameter.kind is parameter.VAR_KEYWORD)
        words.append(f"{stars}{parameter.name}{'' if parameter.default is parameter.empty else '=...'}")
    return f"({', '.join(words)})"


def members(owner: type) -> list[str]:
    """Return the public members that a class, or a base of it that is ours, defines."""
    found = {}
    for base in reversed(owner.__mro__):
        if base.__module__.split(".")[0].startswith("lt_"):
            found.update({n: v for n, v in vars(base).items() if not n.startswith("_")})
    lines = []
    for name, value in sorted(found.items()):
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        lines.append(f"    .{name}{parameters(function) if inspect.isfunction(function) else ''}")
    return lines


def listing(modules: list[str]) -> list[str]:
    """Return a package's listing, a line a name."""
    lines: list[str] = []
    for name in modules:
        module = importlib.import_module(name)
        lines.append(f"# {name}")
        for word in public(module):
            value = getattr(module, word)
            lines.append(f"{word}{parameters(value) if callable(value) else ''}")
            lines += members(value) if inspect.isclass(value) else []
        lines.append("")
    return lines


def main() -> int:
    differs = False
    LISTINGS.mkdir(exist_ok=True)
    for package, modules in MODULES.items():
        path = LISTINGS / f"{package}.txt"
        now = listing(modules)
        if "--write" in sys.argv:
            path.write_text("\n".join(now), encoding="utf-8")
            continue
        then = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        diff = list(difflib.unified_diff(then, now, f"{path.name} (committed)", f"{package} (now)", lineterm="", n=1))
        print(f"{'DIFFERS' if diff else 'ok':>7}  {package}: {sum(bool(x) and x[0] not in '# ' for x in now)} names")
        if diff:
            print(*diff, sep="\n")
            differs = True
    if differs:
        print("If this is meant: python ci/api_diff.py --write, and say so in the package's CHANGELOG.md")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
