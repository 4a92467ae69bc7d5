"""Check what importing costs beyond PyTorch, what is imported, and what an installation brings.

Machines differ and are busy: CPU time is taken, not wall time, as the median of several fresh processes, and where it
is over the budget it is held against the time that a fixed piece of Python work takes here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import distribution
from statistics import median

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SECONDS, MEGABYTES, PACKAGES = 0.15, 15.0, 17
INTERFACE_SECONDS = 0.020
HELP = 1.2
RUNS = 7
OURS = {"lt-interface", "lt-core", "lt-loggers", "lt-accel"}
HEAVY = ["rich", "yaml", "safetensors", "matplotlib", "torch._dynamo", "pandas", "tensorboard", "torchmetrics"]
HEAVY += ["jsonargparse"]
# The pieces below must not be there after `import X`, if X alone was asked for.
FORBIDDEN = {"lt_interface": ["torch", "numpy", *HEAVY], "lt_loggers": ["torch", *HEAVY], "lt_core": HEAVY}

PROBE = """
import gc, json, sys, time
def rss():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * 4096 / 1e6
{first}
gc.collect()
before, memory = set(sys.modules), rss()
start = time.process_time()
{then}
seconds = time.process_time() - start
start = time.process_time()
work = "\\n".join(f"def f{{i}}(a, b={{i}}):\\n    return [a + b for _ in range(b)]" for i in range(60))
for _ in range(20):
    compile(work, "x", "exec")
yardstick = time.process_time() - start
print(json.dumps([seconds, rss() - memory, yardstick, sorted(set(sys.modules) - before)]))
"""
# What the yardstick's work takes on the machine for which the budgets were written, quiet.
YARDSTICK = 0.045


def probe(first: str, then: str) -> tuple[float, float, float, set[str]]:
    """Return the median CPU seconds, megabytes and slowness of some imports after others, and the new modules."""
    # Installing compiles; where it did not, the first run does, and is thrown away.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", PROBE.format(first=first, then=then)]
    runs = []
    for _ in range(1 + RUNS):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        runs.append(json.loads(done.stdout))
    del runs[0]
    slowness = max(1.0, median(run[2] for run in runs) / YARDSTICK)
    return median(run[0] for run in runs), median(run[1] for run in runs), slowness, set(runs[0][3])


def help_ratio() -> float:
    """Return what `lt --help` costs, in CPU seconds of importing what it is made of; both run in turns."""
    commands = [["-c", "import jsonargparse, lt_core"], ["-m", "lt_core.cli", "--help"]]
    taken: list[list[float]] = [[], []]
    for _ in range(1 + RUNS):
        for command, seconds in zip(commands, taken, strict=True):
            before = os.times()
            subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL, check=True)
            after = os.times()
            seconds.append(sum(after[2:4]) - sum(before[2:4]))
    return median(taken[1][1:]) / median(taken[0][1:])


def needed(name: str, extras: frozenset[str] = frozenset(), seen: set[str] | None = None) -> set[str]:
    """Return the names of all packages that an installation of ``name`` brings here, itself included."""
    seen = set() if seen is None else seen
    seen.add(canonicalize_name(name))
    for line in distribution(name).requires or []:
        need = Requirement(line)
        wanted = need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        if wanted and canonicalize_name(need.name) not in seen:
            needed(need.name, frozenset(need.extras), seen)
    return seen


def report(what: str, value: float, allowed: float, unit: str) -> bool:
    """Print one line of the table; return whether the value is over its budget."""
    over = value > allowed
    print(f"{'OVER' if over else 'ok':>4}  {what:<44} {value:8.3f} {unit}  allowed {allowed:.3f}")
    return over


def main() -> int:
    over = []
    for title, first, then, seconds in (
        ("import lt_interface over dataclasses", "import dataclasses", "import lt_interface", INTERFACE_SECONDS),
        ("import lt_loggers over dataclasses", "import dataclasses", "import lt_loggers", INTERFACE_SECONDS),
        ("import lt_core over torch", "import torch", "import lt_core", SECONDS),
    ):
        taken, memory, slowness, modules = probe(first, then)
        over.append(report(title, taken / slowness, seconds, f"s CPU (as measured {taken:.3f})"))
        name = then.split()[-1]
        if name == "lt_core":
            over.append(report(f"{title}, memory", memory, MEGABYTES, "MB"))
        unwanted = sorted(set(FORBIDDEN[name]) & modules)
        over.append(report(f"modules that {name} may not import", len(unwanted), 0, ", ".join(unwanted)))
    over.append(report("lt --help over importing what it needs", help_ratio(), HELP, "x"))
    # What the CUDA builds of PyTorch bring along is no choice of ours.
    third_party = {n for n in needed("lt-core") - OURS if not n.startswith(("nvidia-", "cuda-", "triton"))}
    over.append(report("third-party packages of lt-core", len(third_party), PACKAGES, ""))
    print("      " + " ".join(sorted(third_party)))
    return int(any(over))


if __name__ == "__main__":
    sys.exit(main())
