"""Train with lt-core where nothing can be imported but what it declares.

The declared packages are linked into a folder of their own, and a Python that knows no other place trains, saves and
resumes. With ``--strict``, nothing else may even be installed (but the tools that make environments).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distribution, distributions
from pathlib import Path

from import_budget import needed

TOOLS = {"pip", "setuptools", "wheel", "packaging"}
PROGRAM = """
import sys, tempfile, warnings
from lt_core import Trainer
from lt_core.demos import BoringModel

warnings.simplefilter("ignore")
flags = dict(accelerator="cpu", devices=1, limit_train_batches=4, limit_val_batches=2)
with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(default_root_dir=folder, max_epochs=2, **flags)
    trainer.fit(BoringModel())
    trainer.validate(ckpt_path="best", verbose=False)
    again = Trainer(default_root_dir=folder, max_epochs=3, **flags)
    again.fit(BoringModel(), ckpt_path="last")
    if (trainer.global_step, again.global_step) != (8, 12):
        sys.exit(f"expected 8 and 12 steps, got {trainer.global_step} and {again.global_step}")
"""


def normal(name: str) -> str:
    """Return a distribution's name in its one normal spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


def link(names: set[str], folder: Path) -> list[str]:
    """Link the files of some distributions into a folder; return the path that holds them and nothing else."""
    places = [str(folder)]
    for name in sorted(names):
        owner = distribution(name)
        for top in sorted({file.parts[0] for file in owner.files or []} - {"..", "__pycache__"}):
            source = Path(str(owner.locate_file(top)))
            if source.suffix == ".pth":  # installed from a clone: the file names the place
                places += [line for line in source.read_text(encoding="utf-8").split("\n") if os.path.isdir(line)]
            elif source.exists() and not (folder / top).exists():
                (folder / top).symlink_to(source)
    return places


def run(code: str, names: set[str]) -> subprocess.CompletedProcess[str]:
    """Run code in a Python that finds the standard library and some distributions only."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(link(names, Path(folder)))}
        command = [sys.executable, "-S", "-c", code]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)


def main() -> int:
    declared = needed("lt-core")
    installed = {normal(d.metadata["Name"]) for d in distributions()}
    others = {n for n in installed - declared - TOOLS if not n.startswith(("nvidia-", "cuda-", "triton"))}
    if "--strict" in sys.argv and others:
        print(f"Installed beside what lt-core declares: {', '.join(sorted(others))}")
        return 1
    done = run(PROGRAM, declared)
    if done.returncode:
        print(done.stdout + done.stderr)
        return 1
    print(f"lt-core trained, saved and resumed with {len(declared)} packages within reach, itself included")
    return 0


if __name__ == "__main__":
    sys.exit(main())
