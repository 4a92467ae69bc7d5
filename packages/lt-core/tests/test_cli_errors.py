"""Command line: what is wrong is one line with the key and the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_parts import Net, Rows, argv, written
from jsonargparse import ArgumentError

from lt_core.cli import LightningArgumentParser, LightningCLI
from lt_core.run.program import main
from lt_interface.errors import ConfigError

CASES = {
    "fti": "main.py: fti: no such command. Did you mean fit?",
    "": "main.py: it takes one of fit, validate, test, predict. Got none.",
    "fit --trainer.max_epoch=3": "main.py fit: --trainer.max_epoch: unknown. Did you mean --trainer.max_epochs?",
    "--trainer.max_epochs=3 fit": "main.py fit: --trainer.max_epochs: it comes after the command, as in main.py fit "
    "--trainer.max_epochs=...",
    "fit --foo": "main.py fit: --foo: unknown.",
    "fit stray": "main.py fit: stray: unknown.",
    "fit --trainer.n_gpus=2": "main.py fit: --trainer.n_gpus: unknown. Write --trainer.accelerator=gpu, "
    "--trainer.devices=N.",
    "fit --trainer.gpus 2": "main.py fit: --trainer.gpus: unknown. Write --trainer.accelerator=gpu, "
    "--trainer.devices=N.",
    "fit --trainer.max_nb_epochs=2 --trainer.row_log_interval=1": "main.py fit: --trainer.max_nb_epochs: unknown. "
    "Write --trainer.max_epochs=N. --trainer.row_log_interval: unknown. Write --trainer.log_every_n_steps=N.",
    "fit --trainer.early_stop_callback=true": "main.py fit: --trainer.early_stop_callback: unknown. "
    "Write --trainer.callbacks+=EarlyStopping.",
    "fit --trainer.checkpoint_callback=false": "main.py fit: --trainer.checkpoint_callback: unknown. "
    "Write --trainer.enable_checkpointing=True or False, or --trainer.callbacks+=ModelCheckpoint.",
    "fit --trainer.resume_from_checkpoint=a.ckpt": "main.py fit: --trainer.resume_from_checkpoint: unknown. "
    "Write --ckpt_path=....",
    "fit --trainer.max_epochs=abc": "main.py fit: --trainer.max_epochs: it takes int or null. Got abc.",
    "fit --model.width=1.5": "main.py fit: --model.width: it takes int. Got 1.5.",
    "fit --model.widht=1": "main.py fit: --model.widht: unknown. Did you mean --model.width?",
    "fit --seed_everything=abc": "main.py fit: --seed_everything: it takes bool or int. Got abc.",
    "fit --optimizer=Adamm": "main.py fit: --optimizer: there is no class Adamm. Did you mean Adam?",
    "fit --optimizer=Adam --optimizer.lrr=3": "main.py fit: --optimizer.lrr: Adam takes no such argument. "
    "Did you mean --optimizer.lr?",
    "fit --optimizer.lr=3": "main.py fit: --optimizer.lr: the class comes first, as in --optimizer=CLASS "
    "--optimizer.lr=...",
    "fit --lr_scheduler=StepLR": "main.py fit: --lr_scheduler.step_size: required by StepLR. Got none.",
    "fit --trainer.callbacks+=EarlyStoping": "main.py fit: --trainer.callbacks: there is no class EarlyStoping. "
    "Did you mean EarlyStopping?",
    "fit --trainer.callbacks+=EarlyStopping": "main.py fit: --trainer.callbacks.monitor: required by EarlyStopping. "
    "Got none.",
    "fit --trainer.callbacks+=EarlyStopping --trainer.callbacks.monitr=x": "main.py fit: --trainer.callbacks.monitr: "
    "EarlyStopping takes no such argument. Did you mean --trainer.callbacks.monitor?",
    "fit --trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay=a": "main.py fit: "
    "--trainer.callbacks.decay: it takes float. Got a.",
    "fit --trainer.callbacks=EarlyStopping --trainer.callbacks.monitor=a --trainer.callbacks.patience=x": "main.py "
    "fit: --trainer.callbacks.patience: it takes int. Got x.",
    "fit --trainer.logger=CSVLogger --trainer.logger.savedir=x": "main.py fit: --trainer.logger.savedir: CSVLogger "
    "takes no such argument. Did you mean --trainer.logger.save_dir?",
    "fit --model.part=cli_parts.Prat": "main.py fit: --model.part: there is no class cli_parts.Prat. "
    "Did you mean cli_parts.Part?",
    "fit --model.part=torch.optim.Adam": "main.py fit: --model.part: it takes a subclass of Part. "
    "Got torch.optim.Adam.",
    "fit --config=none.yaml": "main.py fit: --config: File does not exist: ",
}
FILES = {
    "trainer: {max_epoch: 3}": "--trainer.max_epoch: unknown. Did you mean --trainer.max_epochs?",
    "trainer: {max_epochs: abc}": "--trainer.max_epochs: it takes int or null. Got abc.",
    "modle: {width: 3}": "--modle.width: unknown. Did you mean --model.width?",
    "model: {widht: 3}": "--model.widht: unknown. Did you mean --model.width?",
    "optimizer: {class_path: Adam, init_args: {lrr: 3}}": "--optimizer.lrr: Adam takes no such argument. "
    "Did you mean --optimizer.lr?",
    "trainer: {callbacks: [{class_path: EarlyStoping}]}": "--trainer.callbacks: there is no class EarlyStoping. "
    "Did you mean EarlyStopping?",
    "trainer: {callbacks: [{class_path: EarlyStopping, init_args: {monitr: x}}]}": "--trainer.callbacks.monitr: "
    "EarlyStopping takes no such argument. Did you mean --trainer.callbacks.monitor?",
    "trainer: [": "Problems parsing config: ",
    "just text": "Unexpected config: just text",
}
NAMED = {
    "": "main.py fit: --model: required. Got none.",
    "--model=cli_parts.Nte": "main.py fit: --model: there is no class cli_parts.Nte. Did you mean cli_parts.Net?",
    "--model=cliparts.Net": "main.py fit: --model: there is no class cliparts.Net. Did you mean cli_parts.Net?",
    "--model=Own --data=Rwos": "main.py fit: --data: there is no class Rwos. Did you mean Rows?",
    "--model=Own --model.widht=3": "main.py fit: --model.widht: Own takes no such argument. Did you mean "
    "--model.width?",
    "--model=Own --model.width=x": "main.py fit: --model.width: it takes int. Got x.",
    "--model=torch.optim.Adam": "main.py fit: --model: it takes a subclass of LightningModule. Got torch.optim.Adam.",
}


class Cli(LightningCLI):
    """Command line that runs nothing."""

    def fit(self, **_: Any) -> None:
        raise AssertionError("nothing may be run")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Begin in an empty folder."""
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], words: list[str], *classes: Any, cls: type[LightningCLI] = Cli) -> str:
    """Return the one line with which a command line ends."""
    with argv(*words), pytest.raises(SystemExit) as end:
        cls(*classes)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if not line.startswith("Seed set")]
    return line


@pytest.mark.parametrize("words", CASES)
def test_what_is_written_wrongly_is_one_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown key, class or command, a wrong type and a missing value are one line with the nearest name."""
    line = said(capsys, words.split(), Net, Rows)
    assert line == CASES[words] or (CASES[words].endswith(": ") and line.startswith(CASES[words]))


@pytest.mark.parametrize("text", FILES)
def test_files_are_answered_as_words_are(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a configuration file has wrong is the same line."""
    line = said(capsys, ["fit", "--config", written(tmp_path / "c.yaml", text)], Net, Rows)
    assert line.startswith(f"main.py fit: {FILES[text]}")


@pytest.mark.parametrize("text", [text for text in FILES if ": " in text])
def test_files_before_the_subcommand_are_answered_alike(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In front of the subcommand the same line answers what stands below its name."""
    line = said(capsys, ["--config", written(tmp_path / "c.yaml", f"fit: {{{text}}}"), "fit"], Net, Rows)
    assert FILES[text] in line


@pytest.mark.parametrize("words", NAMED)
def test_named_classes_are_answered_with_the_nearest(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Where module and data are named, so are the mistakes in their names and arguments."""
    assert said(capsys, ["fit", *words.split()]) == NAMED[words]


def test_flags_that_the_trainer_refuses_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Values out of range and unknown names of plugins are one line too, all of them together."""
    line = said(capsys, ["fit", "--trainer.max_epochs=-5", "--trainer.strategy=dpp"], Net, Rows)
    assert line.startswith("main.py fit: 2 problems: 1. Trainer(strategy='dpp')")
    assert 'Did you mean "ddp"?' in line or "single_device" in line
    assert "Trainer(max_epochs=-5)" in line


def test_links_to_nothing_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A link whose source or target is no argument names both keys."""

    class Linked(Cli):
        def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
            parser.link_arguments("data.widht", "model.width")

    line = said(capsys, ["fit"], Net, Rows, cls=Linked)
    assert "link_arguments('data.widht', 'model.width')" in line
    assert "Did you mean data.width?" in line


def test_errors_can_be_exceptions() -> None:
    """With ``exit_on_error=False`` the same line is an exception."""
    with (
        argv(),
        pytest.raises(ArgumentError, match=r"^--trainer.max_epoch: unknown. Did you mean --trainer.max_epochs"),
    ):
        LightningCLI(Net, Rows, run=False, args=["--trainer.max_epoch=3"], parser_kwargs={"exit_on_error": False})


# ---------------------------------------------------------------- the program


def test_lt_answers_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """``lt`` ends with status 2 and a line for what was written wrongly."""
    with argv("fit", "--model=cli_parts.Own", "--trainer.max_epoch=2"), pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == ("lt fit: --trainer.max_epoch: unknown. Did you mean --trainer.max_epochs?\n")


def test_lt_reports_errors_of_a_run_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    """What the trainer finds wrong with a module is one line as well."""
    words = ["fit", "--model=cli_parts.Net", "--data=cli_parts.Rows", "--trainer.logger=false"]
    with argv():
        assert main([*words, "--trainer.overfit_batches=-1"]) == 2
    assert "lt: Trainer(overfit_batches=-1)" in capsys.readouterr().err


def test_without_jsonargparse_there_is_one_clear_error(tmp_path: Path) -> None:
    """Where the optional package is missing, importing and ``lt`` say what to install."""
    block = "import sys; sys.meta_path.insert(0, type('No', (), {'find_spec': staticmethod("
    block += (
        "lambda name, *_: (_ for _ in ()).throw(ModuleNotFoundError(name)) if name == 'jsonargparse' else None)})())"
    )
    hide = "import importlib.util as u; real = u.find_spec; "
    hide += "u.find_spec = lambda name, *a: None if name == 'jsonargparse' else real(name, *a)"
    wanted = "lt_core.cli: jsonargparse is needed. Run: pip install 'lt-core[cli]'"
    script = (
        f"{block}\n{hide}\nimport lt_core, lt_core.run.program as p\nassert p.main(['fit']) == 1\nimport lt_core.cli"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.stderr.splitlines()[0] == f"lt: {wanted}"
    assert done.stderr.splitlines()[-1].endswith(wanted)


@pytest.mark.parametrize("args", [["fit", "--config", "old.yaml"], {"fit": {"trainer": {"gpus": 2}}}], ids=str)
def test_an_old_flag_in_a_configuration_gets_the_same_answer(
    tmp_path: Path, args: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flag of an older version in a file or in a dict is answered as on the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    Path("old.yaml").write_text("trainer:\n  gpus: 2\n")
    with pytest.raises(SystemExit):
        LightningCLI(Net, Rows, args=args)
    assert "--trainer.gpus: unknown. Write --trainer.accelerator=gpu, --trainer.devices=N." in capsys.readouterr().err


def test_defaults_of_the_trainer_may_be_old_flags_and_name_no_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old flags among the defaults are taken with the warning; an unknown or contradicting one is an error."""
    monkeypatch.setattr(sys, "argv", ["main.py"])
    with pytest.warns(FutureWarning, match=r"trainer_defaults=.*max_epochs=3"):
        cli = LightningCLI(Net, Rows, run=False, args=[], trainer_defaults={"max_nb_epochs": 3, "logger": False})
    assert cli.trainer.max_epochs == 3
    with pytest.raises(ConfigError, match=r"\['max_epoch'\]|'max_epoch'.*Did you mean \"max_epochs\""):
        LightningCLI(Net, Rows, run=False, args=[], trainer_defaults={"max_epoch": 3})
    with pytest.raises(ConfigError, match=r"Trainer\(gpus=2, num_processes=2\)"):
        LightningCLI(Net, Rows, run=False, args=[], trainer_defaults={"gpus": 2, "num_processes": 2})


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--trainer.callbacks+=SpikeDetection", "--trainer.callbacks.window=-1"],
            "SpikeDetection(window=-1): must be",
        ),
        (["--trainer.callbacks=PredictionWriter"], "PredictionWriter(dirpath=None): it needs the folder"),
        (
            ["--trainer.profiler=AdvancedProfiler", "--trainer.profiler.line_count_restriction=-1"],
            "AdvancedProfiler(line",
        ),
    ],
)
def test_what_a_named_class_refuses_is_its_own_error(words: list[str], line: str) -> None:
    """A class that is named on a command line says itself what it does not take, without the parser's words."""
    with argv(), pytest.raises(ConfigError) as error:
        LightningCLI(Net, Rows, run=False, args=words)
    assert str(error.value).startswith(line)
