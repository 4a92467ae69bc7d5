"""Conformance suite of accelerators."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from lt_interface.accelerator import Accelerator, ChecksPlan, DescribesDevices, ExplainsErrors
from lt_interface.plan import Plan
from lt_interface.registry import accelerators
from lt_interface.streams import SideStream, SupportsSideStream
from lt_interface.testing.suite import Conformance

__all__ = ["AcceleratorConformance"]


class AcceleratorConformance(Conformance, suite=True):
    """Tests of an accelerator. Where its device is missing, only what the parent process calls is tested.

    Example:
        ::

            class TestBoard(AcceleratorConformance):
                plugin = "board"
    """

    registry = accelerators

    @pytest.fixture
    def accelerator(self) -> Accelerator:
        """Return a new accelerator."""
        made: Accelerator = self.make()
        return made

    @pytest.fixture
    def device(self, accelerator: Accelerator) -> Any:
        """Return the first device, or skip where there is none."""
        if not accelerator.is_available():
            pytest.skip(f"no {accelerator.name} device here")
        return accelerator.device(accelerator.parse_devices("auto")[0])

    def test_fills_the_protocol(self, accelerator: Accelerator) -> None:
        """It has every method and attribute, of the right type, and the name it is registered under."""
        assert isinstance(accelerator, Accelerator)
        assert isinstance(accelerator.name, str)
        assert accelerator.name
        assert isinstance(accelerator.priority, int)
        if self.plugin:
            assert accelerator.name == self.plugin

    def test_questions_create_no_context(self, accelerator: Accelerator) -> None:
        """Asking what is there initialises no device, so that a later fork works."""
        import torch

        before = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        assert isinstance(accelerator.is_available(), bool)
        assert accelerator.device_count() >= (1 if accelerator.is_available() else 0)
        if accelerator.is_available():
            accelerator.parse_devices("auto")
            accelerator.parse_devices(1)
            self._ask_abilities(accelerator)
        assert bool(torch.cuda.is_initialized()) == before  # type: ignore[no-untyped-call]

    @staticmethod
    def _ask_abilities(accelerator: Accelerator) -> None:
        """Ask what an accelerator may be able to do of what the parent process asks."""
        if isinstance(accelerator, ChecksPlan):
            assert not accelerator.problems(Plan(accelerator=accelerator.kind), False)
        if isinstance(accelerator, DescribesDevices):
            assert accelerator.missing() is None
            assert accelerator.describe(accelerator.parse_devices("auto")[0])

    def test_auto_means_all_counted_devices(self, accelerator: Accelerator) -> None:
        """``devices="auto"`` gives as many indices as device_count says."""
        if accelerator.is_available():
            assert len(accelerator.parse_devices("auto")) == accelerator.device_count()

    @pytest.mark.parametrize("spec", [1, "1", [0]])
    def test_one_device_in_any_spelling(self, accelerator: Accelerator, spec: Any) -> None:
        """A count, a count as text and a list of one index each give one index."""
        if accelerator.is_available():
            indices = accelerator.parse_devices(spec)
            assert isinstance(indices, list)
            assert len(indices) == 1
            assert all(type(i) is int and i >= 0 for i in indices)

    @pytest.mark.parametrize("spec", [0, -7, "", "0", "some", "no-such", [], [-1], [0, 0], True], ids=repr)
    def test_refuses_no_device(self, accelerator: Accelerator, spec: Any) -> None:
        """A flag that names no device, or one twice, is a ValueError that shows it."""
        with pytest.raises(ValueError) as caught:
            accelerator.parse_devices(spec)
        assert str(spec) in str(caught.value)

    def test_names_a_default_strategy(self, accelerator: Accelerator) -> None:
        """One device and several devices each have a strategy's name."""
        for devices, nodes in [(1, 1), (2, 1), (1, 2)]:
            name = accelerator.default_strategy(devices, nodes)
            assert isinstance(name, str)
            assert name

    def test_device_computes(self, accelerator: Accelerator, device: Any) -> None:
        """After setup, tensors live and add up on the device; setup and teardown can be repeated."""
        import torch

        assert isinstance(device, torch.device)
        for _ in range(2):
            accelerator.setup(device)
            assert (torch.ones(3, device=device) + 1).sum().item() == 6.0
            accelerator.teardown()
        accelerator.teardown()

    def test_stats_are_figures(self, accelerator: Accelerator, device: Any) -> None:
        """Every figure of the device has a text name and a number."""
        accelerator.setup(device)
        stats = accelerator.stats(device)
        accelerator.teardown()
        assert isinstance(stats, dict)
        for name, value in stats.items():
            assert isinstance(name, str)
            assert isinstance(value, (int, float)), name

    def test_random_state_comes_back(self, accelerator: Accelerator, device: Any) -> None:
        """A device that has a random state draws the same numbers again once it is put back; None has none."""
        import torch

        accelerator.setup(device)
        state = accelerator.rng_state(device)
        if state is not None:
            first = torch.rand(8, device=device)
            accelerator.set_rng_state(device, state)
            assert torch.rand(8, device=device).tolist() == first.tolist()
        accelerator.teardown()

    def test_explains_only_what_it_knows(self, accelerator: Accelerator, device: Any) -> None:
        """To an error of the user's own code it adds nothing; its advice is whole sentences."""
        accelerator.setup(device)
        if isinstance(accelerator, ExplainsErrors):
            assert accelerator.explain(ValueError("a step of the user"), device, {}) == ""
        if isinstance(accelerator, DescribesDevices):
            advice = accelerator.advice(device, Plan(accelerator=accelerator.kind))
            assert all(sentence.endswith(".") for sentence in advice)
        accelerator.teardown()

    def test_a_side_stream_copies(self, accelerator: Accelerator, device: Any) -> None:
        """What was joined holds what the host's tensor held, whatever its size; other devices have no such stream."""
        import torch

        if not isinstance(accelerator, SupportsSideStream):
            pytest.skip(f"{accelerator.name} has no side stream")
        accelerator.setup(device)
        stream = accelerator.side_stream(device)
        assert isinstance(stream, SideStream)
        given = [torch.arange(size) for size in (1, 1000, 100_000)] + [torch.arange(6).view(2, 3).t()]
        for _ in range(2):
            copies = [stream.copy(tensor) for tensor in given]
            mark = stream.mark()
            stream.copy(given[0])  # behind the mark, and never joined
            if mark is not None:
                stream.join(mark)
            assert all(copy.device == device for copy in copies)
            assert all(torch.equal(copy.cpu(), tensor) for copy, tensor in zip(copies, given, strict=True))
        assert accelerator.side_stream(torch.device("meta")) is None
        accelerator.teardown()

    def test_pickles(self, accelerator: Accelerator) -> None:
        """It reaches a spawned process."""
        again = pickle.loads(pickle.dumps(accelerator))
        assert again.name == accelerator.name
        assert again.is_available() == accelerator.is_available()
