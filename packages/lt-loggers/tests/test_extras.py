"""What is not installed is named with the command that installs it, and nothing is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import lt_loggers
from lt_interface.registry import loggers

LOGGERS = {"TensorBoardLogger": "tensorboard", "WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
TRACKERS = ["torch", "numpy", "tensorboard", "tensorboardX", "wandb", "mlflow", "PIL", "matplotlib"]
# Lets Python find none of the packages in ``hidden``.
HIDE = """
import importlib.machinery
found = importlib.machinery.PathFinder.find_spec
def find(name, path=None, target=None):
    return None if name.split(".")[0] in {hidden!r} else found(name, path, target)
importlib.machinery.PathFinder.find_spec = find
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing() -> None:
    """Importing lt_loggers and asking for its names imports neither torch nor any tracker."""
    asked = f"json.dumps([name for name in {TRACKERS} if name in sys.modules])"
    found = run(f"import lt_loggers, sys, json; dir(lt_loggers); print({asked})")
    assert json.loads(found) == []


MADE = [
    "import lt_loggers; lt_loggers.{name}('x')",
    "from lt_loggers.{extra} import {name}; {name}('x')",
    "loggers.get('{extra}')(save_dir='x')",
]


@pytest.mark.parametrize("asks", MADE)
@pytest.mark.parametrize(("name", "extra"), LOGGERS.items())
def test_missing_extra(name: str, extra: str, asks: str) -> None:
    """Without its extra a logger can be imported; when it is made, the error is the command that helps."""
    hidden = HIDE.format(hidden=["tensorboard", "tensorboardX", "wandb", "mlflow"])
    asks = asks.format(name=name, extra=extra)
    tried = (
        f"from lt_loggers import {name}\ntry: {asks}\nexcept ImportError as error: print(type(error).__name__, error)"
    )
    assert run(f"{hidden}from lt_interface.registry import loggers\n{tried}") == (
        f"MissingPackageError {name}: this logger needs a package that is not installed. "
        f"Run: pip install 'lt-loggers[{extra}]'\n"
    )


@pytest.mark.parametrize(("name", "extra"), LOGGERS.items())
def test_class_is_known_by_its_name(name: str, extra: str) -> None:
    """The registry finds a logger's name from its class: by that name another process makes it to replay a journal."""
    kind = getattr(lt_loggers, name)
    assert loggers.get(extra) is kind
    assert loggers.name_of(kind) == extra
