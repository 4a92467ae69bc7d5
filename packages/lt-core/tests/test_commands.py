"""The commands of the package: what is installed, what a checkpoint says of itself, and whether it is whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET
from torch import nn

import lt_core
from lt_core import Trainer
from lt_core.__main__ import main as installed
from lt_core.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lt_core.checkpoint import TorchCheckpointIO, load_checkpoint, save_checkpoint
from lt_core.checkpoint.__main__ import main
from lt_core.demos import BoringModel
from lt_interface import registry

NEEDS_TORCH = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 10), reason="reading a pickle needs torch 2.10"
)


@pytest.fixture
def run(tmp_path: Path) -> Trainer:
    """Return a trainer that has fitted."""
    trainer = Trainer(**QUIET, max_epochs=1, limit_train_batches=3, limit_val_batches=0)
    trainer.fit(BoringModel())
    return trainer


class TestInstalled:
    def test_what_a_bug_report_needs(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        """Packages, Python, torch, every plugin, the devices and the variables that count are there; no secret is."""
        monkeypatch.setenv("PL_TRAINER_MAX_EPOCHS", "3")
        monkeypatch.setenv("WANDB_API_KEY", "secret")
        installed([])
        printed = capsys.readouterr().out
        for text in (
            f"lt-core {lt_core.__version__}",
            f"torch {torch.__version__}",
            "lt-interface",
            sys.version.split()[0],
        ):
            assert text in printed
        for kind in (registry.accelerators, registry.strategies, registry.precisions, registry.loggers):
            assert all(name in printed for name in kind.names())
        assert "cpu: cpu" in printed
        assert "PL_TRAINER_MAX_EPOCHS=3" in printed
        assert "secret" not in printed

    def test_a_broken_plugin_is_named(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An accelerator that cannot be asked shows its error, and ends nothing."""
        (point,) = registry._scan()["lt.accelerators"]["cpu"]
        broken = type(point)("boards", "no_such_module:Boards", "lt.accelerators")
        monkeypatch.setitem(registry._scan()["lt.accelerators"], "boards", (broken,))
        installed([])
        assert "boards: PluginError" in capsys.readouterr().out

    def test_the_version(self) -> None:
        """Python -m lt_core --version prints the version alone; so does lt_core.__version__ say."""
        done = subprocess.run(
            [sys.executable, "-m", "lt_core", "--version"], capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout == f"lt-core {lt_core.__version__}\n"


class TestCheckpoints:
    @pytest.mark.parametrize("name", ["a.ckpt", "a.safetensors"])
    def test_show(self, run: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
        """A file shows its size, who wrote it, its progress, its run and its parts, and its weights if asked."""
        run.save_checkpoint(path := tmp_path / name)
        assert main(["show", str(path)]) == 0
        short = capsys.readouterr().out
        assert short.startswith(f"{path}: {path.stat().st_size:,} bytes\n")
        for text in (f"lt_core {lt_core.__version__}", "step 3, epoch 1 (closed)", "begun 20", "optimizer_states"):
            assert text in short
        assert "layer.weight" not in short
        assert main(["show", "--weights", str(path)]) == 0
        assert "  layer.weight  float32 [2, 32]\n" in (long := capsys.readouterr().out)
        assert long.endswith("  66 numbers in 2 tensors\n")

    def test_an_open_epoch(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file from inside an epoch says after how many batches."""
        flags = {
            **QUIET,
            "enable_checkpointing": True,
            "max_epochs": 1,
            "limit_train_batches": 3,
            "limit_val_batches": 0,
        }
        saves = ModelCheckpoint(tmp_path, every_n_train_steps=2, filename="mid")
        Trainer(**flags, callbacks=[saves]).fit(BoringModel())
        assert main(["show", str(tmp_path / "mid.ckpt")]) == 0
        assert "step 2, epoch 0 (open after 2 batches)" in capsys.readouterr().out

    def test_verify(self, run: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A whole file is 0; one with a changed byte, a missing one and one of another kind are 1, each with why."""
        run.save_checkpoint(good := tmp_path / "good.ckpt")
        data = bytearray(good.read_bytes())
        data[-5] ^= 1
        (tmp_path / "bad.ckpt").write_bytes(data)
        (tmp_path / "text.ckpt").write_text("no checkpoint at all")
        assert main(["verify", str(good)]) == 0
        assert capsys.readouterr().out == f"{good}: whole, {good.stat().st_size:,} bytes\n"
        for name, why in (
            ("bad.ckpt", "checksum"),
            ("text.ckpt", "no checkpoint"),
            ("none.ckpt", "no such checkpoint"),
        ):
            assert main(["verify", str(tmp_path / name), str(good)]) == 1
            shown = capsys.readouterr()
            assert why in shown.err
            assert f"{good}: whole" in shown.out

    @NEEDS_TORCH
    def test_import(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file of Lightning becomes one of ours beside it, and the command says what came over; none is replaced."""
        layer = nn.Linear(2, 1)
        states = [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9).state_dict()]
        tree = {"state_dict": layer.state_dict(), "epoch": 2, "global_step": 7, "optimizer_states": states}
        torch.save(
            {**tree, "pytorch-lightning_version": "2.6.0", "lr_schedulers": []}, path := tmp_path / "theirs.ckpt"
        )
        assert main(["import", str(path)]) == 0
        printed = capsys.readouterr().out
        target = tmp_path / "theirs.safetensors"
        assert f"{target}: 2 state_dict, 1 optimizer_states, 0 lr_schedulers, 0 callbacks; step 7, epoch 2" in printed
        assert f'ckpt_path="{target}"' in printed
        assert torch.equal(load_checkpoint(target)["state_dict"]["weight"], layer.weight)
        assert main(["import", str(path)]) == 1
        assert "there is such a file already" in capsys.readouterr().err
        assert main(["import", str(path), str(tmp_path / "other.ckpt")]) == 0

    @NEEDS_TORCH
    def test_import_of_our_own(self, run: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """A file of this package is left as it is."""
        run.save_checkpoint(path := tmp_path / "ours.ckpt")
        assert main(["import", str(path)]) == 0
        assert "of this package already" in capsys.readouterr().out
        assert not (tmp_path / "ours.safetensors").exists()

    def test_without_a_command(self) -> None:
        """Without a command the usage is shown, with status 2."""
        with pytest.raises(SystemExit, match="2"):
            main([])


class TestNames:
    def test_a_safetensors_name(self, run: Trainer, tmp_path: Path) -> None:
        """A checkpoint may be called .safetensors: it is saved, loaded and resumed from, and other readers open it."""
        from safetensors.torch import load_file

        run.save_checkpoint(path := tmp_path / "a.safetensors")
        assert type(BoringModel.load_from_checkpoint(path)) is BoringModel
        assert "model.layer.weight" in load_file(path)
        flags = {**QUIET, "max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0}
        again = Trainer(**flags)
        again.fit(BoringModel(), ckpt_path=path)
        assert again.global_step == 6

    def test_callbacks_save_under_such_names(self, tmp_path: Path) -> None:
        """A filename that ends in .safetensors makes such files, the last one too; "last" finds them."""
        flags: dict[str, Any] = {
            **QUIET,
            "enable_checkpointing": True,
            "limit_train_batches": 2,
            "limit_val_batches": 0,
        }
        saves = ModelCheckpoint(tmp_path, filename="best-{step}.safetensors", save_last=True)
        Trainer(**flags, max_epochs=1, callbacks=[saves]).fit(BoringModel())
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            ".runs",
            "best-step=2.safetensors",
            "last.safetensors",
        ]
        again = Trainer(
            **flags, max_epochs=2, callbacks=[ModelCheckpoint(tmp_path, filename="best-{step}.safetensors")]
        )
        again.fit(BoringModel(), ckpt_path="last")
        assert again.global_step == 4
        assert OnExceptionCheckpoint(tmp_path, "stopped.safetensors").ckpt_path == str(tmp_path / "stopped.safetensors")

    @pytest.mark.parametrize("count", [0, 1, 7, 40])
    def test_torch_load_refuses_each_file_in_the_same_words(self, tmp_path: Path, count: int) -> None:
        """Every file begins with one byte, so that what torch.load says can be looked up; data stays aligned."""
        save_checkpoint({f"entry {i}": torch.ones(i) for i in range(count)}, path := tmp_path / "a.ckpt")
        data = path.read_bytes()
        assert data[0] == 248
        assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0
        for weights_only, words in ((True, "Unsupported operand 248"), (False, r"invalid load key, '\\xf8'")):
            with pytest.raises(Exception, match=words):
                torch.load(path, weights_only=weights_only)

    def test_the_store_of_torch_takes_the_name_too(self, tmp_path: Path) -> None:
        """Which format a file has, its bytes say, whatever its name."""
        flags = {**QUIET, "max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0}
        trainer = Trainer(**flags, plugins=TorchCheckpointIO())
        trainer.fit(BoringModel())
        trainer.save_checkpoint(path := tmp_path / "a.safetensors")
        assert type(BoringModel.load_from_checkpoint(path)) is BoringModel
