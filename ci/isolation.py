"""Train with lt-core while nothing may be imported but what it declares.

With ``--strict``, nothing else may even be installed (but the tools that make environments).
"""

from __future__ import annotations

import re
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import distributions, packages_distributions
from types import ModuleType
from typing import Any

from import_budget import needed

TOOLS = {"pip", "setuptools", "wheel", "packaging"}


def normal(name: str) -> str:
    """Return a distribution's name in its one normal spelling."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Refusing(MetaPathFinder):
    """Refuse modules that only packages outside the allowed ones provide, and note who asked."""

    def __init__(self, allowed: set[str]) -> None:
        self._owners = {m: {normal(d) for d in owners} for m, owners in packages_distributions().items()}
        self._allowed = allowed
        self.refused: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        owners = self._owners.get(fullname.split(".", maxsplit=1)[0], set())
        if owners and owners.isdisjoint(self._allowed):
            self.refused.add(fullname)
            raise ModuleNotFoundError(f"{fullname} is not among what lt-core declares", name=fullname)
        return None


def train() -> None:
    """Fit, checkpoint, log, validate and resume with the defaults."""
    from lt_core import Trainer
    from lt_core.demos import BoringModel

    flags: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "limit_train_batches": 4,
        "limit_val_batches": 2,
    }
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(default_root_dir=folder, **flags)
        trainer.fit(BoringModel())
        trainer.validate(ckpt_path="best", verbose=False)
        again = Trainer(default_root_dir=folder, **{**flags, "max_epochs": 3})
        again.fit(BoringModel(), ckpt_path="last")
        if (trainer.global_step, again.global_step) != (8, 12):
            raise SystemExit(f"expected 8 and 12 steps, got {trainer.global_step} and {again.global_step}")


def main() -> int:
    declared = needed("lt-core")
    installed = {normal(d.metadata["Name"]) for d in distributions()}
    others = {n for n in installed - declared - TOOLS if not n.startswith(("nvidia-", "cuda-", "triton"))}
    if "--strict" in sys.argv and others:
        print(f"Installed beside what lt-core declares: {', '.join(sorted(others))}")
        return 1
    refusing = Refusing(declared)
    sys.meta_path.insert(0, refusing)
    train()
    print(
        f"lt-core trained with {len(declared)} packages; asked for and refused: {sorted(refusing.refused) or 'nothing'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
