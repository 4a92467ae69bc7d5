"""The program ``lt``, in processes of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_parts import BARE, FEW, argv

from lt_core.run.program import main

HERE = Path(__file__).parent
NAMED = ["--model=cli_parts.Net", "--data=cli_parts.Rows", "--optimizer=Adam"]


def lt(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run ``lt`` in a folder."""
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "lt_core.cli", *words]
    environment = {**os.environ, "PYTHONPATH": path, "POSSIBLE_USER_WARNINGS": "off"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


def test_a_model_is_trained_and_tested_from_the_shell(tmp_path: Path) -> None:
    """``lt fit`` trains what it is given, and ``lt test`` reads its configuration and checkpoint."""
    done = lt(tmp_path, "fit", *NAMED, *FEW, "--model.width=3", "--data.width=3")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    [config] = tmp_path.rglob("config.yaml")
    [checkpoint] = tmp_path.rglob("*.ckpt")
    words = ["--config", str(config), f"--ckpt_path={checkpoint}", "--trainer.enable_progress_bar=false"]
    done = lt(tmp_path, "validate", *words)
    assert done.returncode == 0, done.stderr
    assert "val" in done.stdout
    done = lt(tmp_path, "fit", "--config", str(config), "--print_config")
    assert "width: 3" in done.stdout


def test_the_users_modules_are_those_of_the_working_folder(tmp_path: Path) -> None:
    """A model is found in the folder in which the program is started."""
    (tmp_path / "mine.py").write_text("from cli_parts import Own\nclass Model(Own):\n    pass\n")
    script = (
        "import sys; sys.path[:] = [p for p in sys.path if p]; from lt_core.run.program import main; sys.exit(main())"
    )
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-c", script, "fit", "--model=mine.Model", "--data=Rows", *BARE]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """``lt --help`` has the subcommands, what else there is, and where the options of each are."""
    with argv("--help"), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("fit", "validate", "test", "predict", "journal"))
    with argv("fit", "--help"), pytest.raises(SystemExit):
        main()
    out = capsys.readouterr().out
    for option in ("--trainer.max_epochs", "--model", "--data", "--optimizer", "--ckpt_path", "--seed_everything"):
        assert option in out


def test_journals_are_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``lt journal`` is ``python -m lt_core.journal``."""
    assert main(["journal", "status", str(tmp_path)]) == 2
    assert "metrics.journal" in capsys.readouterr().err
