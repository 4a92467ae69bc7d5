"""Which devices a trainer takes, what it says of them, and what of an error that ends a run on one."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import boards
import pytest
import torch
from processes import ForkLauncher
from quiet import QUIET, Noting

from lt_core import Trainer
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_core.run import announce
from lt_core.run.request import process_state, restore_process
from lt_interface import ConfigError, MisconfigurationException, Problem, registry

BATCHES = [torch.ones(2, 1)] * 2
FLAGS: dict[str, Any] = {**QUIET, "max_epochs": 1, "accelerator": "auto", "limit_val_batches": 0}
LACKING = Problem('Trainer(accelerator="boards")', "the boards' driver is too old", "driver 1", "Update it.")


@pytest.fixture(autouse=True)
def _nothing_said_before() -> Iterator[None]:
    """Forget advice that an earlier test was given."""
    announce._once.cache_clear()
    yield
    announce._once.cache_clear()


@pytest.mark.parametrize(("device", "command"), [("cuda", r"'lt-accel\[cuda\]'"), ("mps", "lt-accel")])
def test_a_device_that_nothing_drives_is_one_warning(
    monkeypatch: pytest.MonkeyPatch, device: str, command: str
) -> None:
    """Where torch sees a device and its package is missing, "auto" warns once, with the command that installs it."""
    with monkeypatch.context() as patch:
        cpu = registry._scan()["lt.accelerators"]["cpu"]
        patch.setitem(registry._scan(), "lt.accelerators", {"cpu": cpu})
        patch.setattr(getattr(torch, device) if device == "cuda" else torch.backends.mps, "is_available", lambda: True)
        with pytest.warns(UserWarning, match=f"accelerator='auto'.*torch can use {device} here.*{command}$") as found:
            Trainer(**FLAGS)
        assert len(found) == 1
        Trainer(**{**FLAGS, "accelerator": "cpu"})
        patch.setitem(registry._scan(), "lt.accelerators", {"cpu": cpu, device: cpu})
        Trainer(**FLAGS)


class HasTest(Noting):
    """Module with a test."""

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test", batch.sum())


def said(caplog: pytest.LogCaptureFixture, **flags: Any) -> list[str]:
    """Return the lines that a fit with some flags, and a test after it, write, but for the one of the fit's end."""
    caplog.clear()
    with caplog.at_level("INFO", logger="lt_core"):
        trainer = Trainer(**{**FLAGS, "enable_progress_bar": True, **flags})
        trainer.fit(Noting(), BATCHES)
        trainer.test(HasTest(), BATCHES, verbose=False)
    return [line for line in caplog.messages if not line.startswith("`Trainer.fit`")]


REST = "Precision: 32-true. Strategy: single_device. A new run."


class TestTheLine:
    def test_used_and_unused(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """Each fit begins with one line, that says which device is used and which is not; a test after it has none."""
        boards.install(monkeypatch)
        assert said(caplog) == [f"Device: boards:0. Not used: boards:1. {REST}"]
        assert said(caplog, devices=[1]) == [f"Device: boards:1. Not used: boards:0. {REST}"]

    def test_unused_beside_the_cpu(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """A device that is there is named even where the user chose the CPU; one that is not there is not."""
        boards.install(monkeypatch, lacking=LACKING)
        assert said(caplog, accelerator="cpu") == [f"Device: cpu. Not used: boards:0, boards:1. {REST}"]
        boards.install(monkeypatch, count=0, lacking=None)
        assert said(caplog, accelerator="cpu") == [f"Device: cpu. {REST}"]

    def test_what_is_missing(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """Where a device cannot be used and so the trainer chose the CPU, the line says why; with "cpu" it does not."""
        boards.install(monkeypatch, count=0, lacking=LACKING)
        assert said(caplog) == [f"Device: cpu. {REST} {LACKING}"]
        assert said(caplog, accelerator="cpu") == [f"Device: cpu. {REST}"]

    def test_without_a_bar(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """Without a progress bar the line is left out, unless a device cannot be used: then it says that, once."""
        boards.install(monkeypatch, count=1)
        assert said(caplog, enable_progress_bar=False) == []
        boards.install(monkeypatch, count=0, lacking=LACKING)
        assert said(caplog, enable_progress_bar=False) == [f"Device: cpu. {LACKING}"]
        assert said(caplog, enable_progress_bar=False) == []

    def test_a_broken_plugin(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """An installed accelerator that cannot be imported does not end a run that does not use it."""
        boards.install(monkeypatch)
        monkeypatch.delattr(boards, "Boards")
        assert said(caplog, accelerator="cpu") == [f"Device: cpu. {REST}"]

    def test_advice_once(self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        """What the accelerator advises is shown once a process, after the line, and not where it is not used."""
        boards.install(monkeypatch, count=1, sentences=("Call boards.fast().",))
        assert said(caplog, accelerator="cpu") == [f"Device: cpu. Not used: boards:0. {REST}"]
        assert said(caplog) == [f"Device: boards:0. {REST}", "Call boards.fast()."]
        assert said(caplog) == [f"Device: boards:0. {REST}"]


class TestWhichAreTaken:
    def test_auto_is_what_can_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without anything that starts processes "auto" is one device; with a strategy for several it is all."""
        boards.install(monkeypatch, count=4)
        trainer = Trainer(**FLAGS)
        assert (trainer.num_devices, trainer.strategy.name) == (1, "single_device")
        assert Trainer(**FLAGS, strategy="single_device").num_devices == 1
        several = boards.Boards()
        monkeypatch.setattr(boards.Boards, "default_strategy", lambda self, devices, nodes: "single_device")
        monkeypatch.setattr(SingleDeviceStrategy, "problems", lambda self, plan, module=None: [])
        assert Trainer(**{**FLAGS, "accelerator": several}, launcher=ForkLauncher()).num_devices == 4

    def test_auto_where_no_strategy_for_several_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where the strategy for several devices is not installed, a trainer without flags takes one of them."""

        def default(self: Any, devices: int, nodes: int) -> str:
            return "not_installed" if devices > 1 else "single_device"

        boards.install(monkeypatch, count=4, default_strategy=default)
        assert Trainer(**FLAGS).num_devices == 1
        with pytest.raises(ConfigError, match="not_installed"):
            Trainer(**FLAGS, devices=2)

    def test_a_word_of_the_accelerators_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A word with a hyphen, or a list of them, is the accelerator's to answer; others it refuses."""
        boards.install(monkeypatch)
        assert Trainer(**FLAGS, devices="the-second").device_ids == [1]
        assert Trainer(**FLAGS, devices=["the-second"]).device_ids == [1]
        with pytest.raises(ConfigError, match=r"Trainer\(devices='the-third'\)"):
            Trainer(**FLAGS, devices="the-third")
        with pytest.raises(ConfigError, match=r"Trainer\(devices='GPU-1234'\): on the CPU this must be a number"):
            Trainer(**{**FLAGS, "accelerator": "cpu"}, devices="GPU-1234")

    def test_a_kind_that_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An accelerator that is named and cannot be used is refused with its reason, where it knows one."""
        boards.install(monkeypatch, count=0)
        with pytest.raises(MisconfigurationException, match=r"Trainer\(accelerator='boards'\): no such device can be"):
            Trainer(**{**FLAGS, "accelerator": "boards"})
        boards.install(monkeypatch, count=0, lacking=LACKING)
        with pytest.raises(MisconfigurationException) as caught:
            Trainer(**{**FLAGS, "accelerator": "boards"})
        assert str(caught.value) == (
            "Trainer(accelerator='boards'): the boards' driver is too old. Got driver 1. Update it."
        )

    def test_what_the_accelerator_cannot_do(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What devices cannot do is reported with all other problems; whether a launcher forks is known to them."""
        kind = boards.install(monkeypatch)
        with pytest.raises(ConfigError, match=r"2 problems:\n.*\n.*a board has 32 bits"):
            Trainer(**FLAGS, precision="64-true").fit(torch.nn.Linear(1, 1), BATCHES)  # type: ignore[arg-type]
        Trainer(**FLAGS, devices=1, launcher=ForkLauncher()).fit(Noting(), BATCHES)
        assert kind.forked == [False, True]


class Full(Noting):
    """Module whose third step finds the memory full."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise MemoryError("the board is full", 12)
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class TestErrors:
    def test_the_owners_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error that the accelerator knows stays the same object, and its message ends with the run's tensors."""
        boards.install(monkeypatch)
        with pytest.raises(MemoryError) as caught:
            Trainer(**FLAGS).fit(Full(), [torch.ones(2, 1)] * 4)
        text, *rest = caught.value.args
        assert rest == [12]
        assert text.splitlines()[1:] == [
            "parameters: layer.bias, layer.weight",
            "buffers: ",
            "gradients: layer.bias, layer.weight",
            "optimizer states: momentum_buffer of layer.bias, momentum_buffer of layer.weight",
        ]

    def test_from_another_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The explanation reaches the process that launched the ranks."""
        boards.install(monkeypatch)
        with pytest.raises(MemoryError, match=r"gradients: layer\.bias, layer\.weight"):
            Trainer(**FLAGS, devices=1, launcher=ForkLauncher()).fit(Full(), [torch.ones(2, 1)] * 4)

    def test_other_errors_are_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An error that the accelerator does not know keeps its words; so does any where the explanation fails."""
        boards.install(monkeypatch)
        monkeypatch.setattr(Full, "training_step", lambda self, batch, batch_idx: {}["no key"])
        with pytest.raises(KeyError) as caught:
            Trainer(**FLAGS).fit(Full(), BATCHES)
        assert caught.value.args == ("no key",)
        monkeypatch.setattr(boards.Boards, "explain", lambda self, error, device, owners: 1 / 0)
        with (
            pytest.warns(UserWarning, match="explaining, after an error: it raised ZeroDivisionError"),
            pytest.raises(KeyError),
        ):
            Trainer(**FLAGS).fit(Full(), BATCHES)


class TestLettingGo:
    def test_the_last_graph_is_gone_before_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """When the device is given back, nothing of the last step is alive any more, so that its memory is free."""
        losses: list[weakref.ref[Any]] = []
        alive: list[int] = []

        class Watched(Noting):
            def training_step(self, batch: Any, batch_idx: int) -> Any:
                loss = super().training_step(batch, batch_idx)
                losses.append(weakref.ref(loss))
                return loss

        def count() -> None:
            gc.collect()
            alive.append(sum(ref() is not None for ref in losses))

        boards.install(monkeypatch, torn_down=count)
        Trainer(**FLAGS).fit(Watched(), BATCHES)
        assert (len(losses), alive) == (2, [0])

    @pytest.mark.skipif(not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch knows it from 2.9 on")
    def test_ranks_know_that_nobody_decided(self) -> None:
        """A process that a launcher started sets how torch multiplies matrices only where it differs there."""
        torch.backends.cuda.matmul.fp32_precision = "none"
        restore_process(process_state())
        assert torch.backends.cuda.matmul.fp32_precision == "none"

    def test_ranks_seed_their_devices(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A process that a launcher started seeds its devices' generators as those of the launching one were."""
        seeds: list[int] = []
        torch.manual_seed(1234)
        drawn = torch.rand(3)
        state = process_state()
        expected = torch.rand(3)
        torch.manual_seed(1)
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        restore_process(state)
        assert seeds == [1234]
        assert torch.equal(torch.rand(3), expected)
        assert not torch.equal(drawn, expected)
