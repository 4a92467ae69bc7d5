"""The built-in accelerator, strategy, precisions, launcher and engine beyond what the interface asks."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lt_core.builtin.cpu import CPUAccelerator
from lt_core.builtin.empty import NoInit
from lt_core.builtin.engine import PlainEngine
from lt_core.builtin.in_process import InProcessLauncher
from lt_core.builtin.precision import BFloat16Precision, DoublePrecision, FullPrecision
from lt_core.builtin.single_device import SingleDeviceStrategy
from lt_interface import CheckpointError, MisconfigurationException, Outcome, Plan
from lt_interface.registry import launchers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)
        self.b = nn.Linear(4, 4)
        self.tied = self.b

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.tied(torch.tanh(self.b(self.a(batch)))).pow(2).mean()


def plain(module: nn.Module, *optimizers: torch.optim.Optimizer, precision: Any = None) -> PlainEngine:
    return PlainEngine(module, optimizers, [], precision or FullPrecision(), Plan())


def train(engine: PlainEngine, start: int, stop: int) -> None:
    for index in range(start, stop):
        batch = torch.randn(5, 3, generator=torch.Generator().manual_seed(index))

        def closure(batch: Any = batch, index: int = index) -> Any:
            engine.optimizers[0].zero_grad()
            loss = engine.call["training_step"](batch, index)
            engine.backward(loss)
            return loss

        engine.update(0, True, closure)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [(2, [0, 1]), ("3", [0, 1, 2]), ("auto", [0]), ("0,2", [0, 2]), ("1,", [1]), ((0, 3), [0, 3]), (" 1 ", [0])],
)
def test_cpu_devices(spec: Any, expected: list[int]) -> None:
    """A count is that many processes; a list names them."""
    assert CPUAccelerator().parse_devices(spec) == expected


@pytest.mark.parametrize("spec", [-1, "a,b", "-1", [1.0], [True], 1.5])
def test_cpu_refuses_other_devices(spec: Any) -> None:
    """Anything else is a ValueError in our form that shows the value and what to write."""
    with pytest.raises(ValueError, match=r"Trainer\(devices=.*devices=1"):
        CPUAccelerator().parse_devices(spec)


def test_cpu_refuses_a_gpu() -> None:
    """Setting up another kind of device names it."""
    with pytest.raises(ValueError, match="cuda"):
        CPUAccelerator().setup(torch.device("cuda"))


def test_cpu_default_strategy() -> None:
    """One process runs alone; several need the strategy for several."""
    accelerator = CPUAccelerator()
    assert accelerator.default_strategy(1, 1) == "single_device"
    assert accelerator.default_strategy(2, 1) == accelerator.default_strategy(1, 2) == "ddp"


def test_in_process_launcher() -> None:
    """The launcher is found by name, calls the run right here, and refuses several processes."""
    launcher = launchers.get("in_process")()
    assert isinstance(launcher, InProcessLauncher)
    payload = object()
    outcome = launcher.launch(lambda given: Outcome(value=given), payload, Plan(), None)
    assert outcome.value is payload
    assert launcher.problems(Plan()) == []
    (problem,) = launcher.problems(Plan(devices=(0, 1), num_nodes=2))
    assert "4 processes" in str(problem)


def test_single_device_refuses_several() -> None:
    """A plan of two devices is a problem that names the strategy and what to set."""
    (problem,) = SingleDeviceStrategy().problems(Plan(devices=(0, 1)))
    assert str(problem).startswith('Trainer(strategy="single_device"): this strategy uses one device')
    assert "devices=2" in problem.got


def test_single_device_takes_a_given_device() -> None:
    """A device that the user names wins over the accelerator's, and is set up by it."""
    strategy = SingleDeviceStrategy("cuda:1")
    with pytest.raises(ValueError, match="cuda:1"):
        strategy.setup(None, CPUAccelerator(), [0], Plan())


def test_engine_adds_no_frame() -> None:
    """With nothing to do around a step, the engine calls the module's own method and the tensor's backward."""
    net = Net()
    engine = plain(net)
    assert engine.call == {"training_step": net.training_step}
    assert engine.backward is Tensor.backward
    assert engine.place is None


def test_engine_wraps_a_step_where_needed() -> None:
    """Under a precision with a context the step runs inside it, and the output is converted."""
    seen: list[torch.dtype] = []

    class Watching(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            seen.append(torch.get_default_dtype())
            return batch

    precision = DoublePrecision()
    precision.convert_output = lambda output: output + 1
    assert plain(Watching(), precision=precision).call["training_step"](1, 0) == 2
    assert seen == [torch.float64]
    assert torch.get_default_dtype() == torch.float32
    only_output = FullPrecision()
    only_output.convert_output = lambda output: output * 10
    assert plain(Watching(), precision=only_output).call["training_step"](2, 0) == 20


def test_engine_refuses_another_clipping() -> None:
    """An unknown algorithm is an error that shows it."""
    net = Net()
    with pytest.raises(MisconfigurationException, match="'length'"):
        plain(net, torch.optim.SGD(net.parameters(), lr=0.1)).clip(0, 1.0, "length")


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
    "Adafactor": torch.optim.Adafactor,
    "Rprop": torch.optim.Rprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_states_resume_to_the_bit(name: str) -> None:
    """State by name, with tied weights under their first name, continues exactly in a new optimizer."""
    torch.manual_seed(0)
    net = Net()
    engine = plain(net, OPTIMIZERS[name](net.parameters()))
    train(engine, 0, 3)
    (saved,) = copy.deepcopy(engine.optimizer_states())
    again = copy.deepcopy(net)
    assert saved["param_groups"][0]["params"] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert set(saved["state"]) <= {"a.weight", "a.bias", "b.weight", "b.bias"}
    train(engine, 3, 6)
    other = plain(again, OPTIMIZERS[name](again.parameters()))
    other.load_optimizer_states([saved])
    train(other, 3, 6)
    assert all(torch.equal(x, y) for x, y in zip(net.parameters(), again.parameters(), strict=True))


def test_state_finds_its_parameter_in_any_order() -> None:
    """Parameters given in another order, or in groups, get their own state."""
    net = Net()
    engine = plain(net, torch.optim.Adam(net.parameters()))
    train(engine, 0, 2)
    saved = engine.optimizer_states()
    other = plain(net, torch.optim.Adam(list(net.parameters())[::-1]))
    other.load_optimizer_states(saved)
    for parameter in net.parameters():
        ours, theirs = other.optimizers[0].state[parameter], engine.optimizers[0].state[parameter]
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])


def test_numbered_states_are_taken_by_place() -> None:
    """State in torch's own form, as an imported checkpoint has it, is accepted."""
    net = Net()
    engine = plain(net, torch.optim.Adam([{"params": net.a.parameters()}, {"params": net.b.parameters(), "lr": 0.5}]))
    train(engine, 0, 2)
    numbered = copy.deepcopy(engine.optimizers[0].state_dict())
    other = plain(net, torch.optim.Adam([{"params": net.a.parameters()}, {"params": net.b.parameters()}]))
    other.load_optimizer_states([numbered])
    assert other.optimizers[0].param_groups[1]["lr"] == 0.5
    assert torch.equal(other.optimizers[0].state[net.b.bias]["exp_avg"], numbered["state"][3]["exp_avg"])


def test_foreign_parameter_has_a_name_too() -> None:
    """A parameter that the module does not hold is saved under its place."""
    net, extra = Net(), nn.Parameter(torch.zeros(2))
    engine = plain(net, torch.optim.SGD([*net.parameters(), extra], lr=0.1, momentum=0.9))
    extra.grad = torch.ones(2)
    engine.update(0, True)
    (saved,) = engine.optimizer_states()
    assert saved["param_groups"][0]["params"][-1] == "<group 0, parameter 4>"
    engine.load_optimizer_states([saved])
    assert torch.equal(engine.optimizers[0].state[extra]["momentum_buffer"], torch.ones(2))


def test_state_keeps_its_own_format() -> None:
    """Averages kept in 32 bits beside 16-bit parameters come back in 32 bits; a changed precision still casts."""

    class WideSGD(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["mean"] = self.state[p].get("mean", torch.zeros(p.shape)) + p.grad.float() / 3
            return None

    net = BFloat16Precision().convert(Net())
    engine = plain(net, WideSGD(net.parameters(), lr=0.1))
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, 1.0)
    engine.update(0, True)
    saved = copy.deepcopy(engine.optimizer_states())
    other = plain(net, WideSGD(net.parameters(), lr=0.1))
    other.load_optimizer_states(saved)
    mean = other.optimizers[0].state[net.a.bias]["mean"]
    assert mean.dtype == torch.float32
    assert torch.equal(mean, torch.full((4,), 1.0) / 3)
    wide = Net()
    full = plain(wide, torch.optim.Adam(wide.parameters()))
    train(full, 0, 1)
    narrow = BFloat16Precision().convert(copy.deepcopy(wide))
    cast = plain(narrow, torch.optim.Adam(narrow.parameters()))
    cast.load_optimizer_states(full.optimizer_states())
    assert cast.optimizers[0].state[narrow.a.bias]["exp_avg"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda net: [torch.optim.SGD(net.a.parameters(), lr=0.1)], r"param_groups\[0\].*b\.weight, b\.bias.*only"),
        (
            lambda net: [torch.optim.SGD([{"params": net.a.parameters()}, {"params": net.b.parameters()}], lr=0.1)],
            "groups",
        ),
        (lambda net: [torch.optim.SGD(net.parameters(), lr=0.1)] * 2, "Got 1 for 2"),
    ],
    ids=["parameters", "groups", "optimizers"],
)
def test_other_optimizers_are_refused(build: Any, text: str) -> None:
    """State for other parameters, groups or optimizers is an error that names the difference."""
    net = Net()
    saved = plain(net, torch.optim.SGD(net.parameters(), lr=0.1)).optimizer_states()
    with pytest.raises(CheckpointError, match=text):
        plain(net, *build(net)).load_optimizer_states(saved)


def test_double_precision_leaves_complex_alone() -> None:
    """Complex and integer buffers keep their values when the module is converted."""
    net = nn.Module()
    net.register_buffer("phase", torch.tensor([1 + 2j]))
    net.register_buffer("count", torch.tensor(3))
    converted = DoublePrecision().convert(net)
    assert converted.get_buffer("phase").tolist() == [1 + 2j]
    assert converted.get_buffer("count").dtype == torch.int64


def test_default_format_returns_after_an_error() -> None:
    """An exception inside the context does not leave the default format changed."""
    precision = DoublePrecision()
    with pytest.raises(KeyError), precision.init_context():
        raise KeyError
    assert torch.get_default_dtype() == torch.float32


def test_materialise_keeps_ties_and_buffers() -> None:
    """Tied weights of a meta module stay tied; normalisation statistics get their true start."""
    with torch.device("meta"):
        net = nn.Sequential(OrderedDict(net=Net(), norm=nn.BatchNorm1d(4)))
    SingleDeviceStrategy().shard(net, FullPrecision(), loads_weights=False)
    assert net.net.tied.weight is net.net.b.weight
    assert [name for name, _ in net.named_parameters()][:3] == ["net.a.weight", "net.a.bias", "net.b.weight"]
    assert torch.equal(net.norm.running_var, torch.ones(4))  # type: ignore[arg-type]
    assert not any(p.is_meta for p in net.parameters())


def test_materialise_needs_weights() -> None:
    """A meta module that cannot initialise itself is an error naming it, unless weights will be loaded."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.empty(2, device="meta"), requires_grad=False)

    with pytest.raises(MisconfigurationException, match=r"for inner\. Give them a reset_parameters"):
        SingleDeviceStrategy().shard(nn.Sequential(OrderedDict(inner=Bare())), FullPrecision(), loads_weights=False)
    loaded = Bare()
    SingleDeviceStrategy().shard(loaded, FullPrecision(), loads_weights=True)
    assert loaded.w.device.type == "cpu"
    assert not loaded.w.requires_grad


def test_meta_modules_are_filled_from_the_inside() -> None:
    """What a meta module fills of its children stays, leaves have the values of one built here, and marks are kept."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.scale = nn.Parameter(torch.empty(1))
            self.scale.no_decay = True  # type: ignore[attr-defined]
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.constant_(self.second.weight, 7.0)
            nn.init.constant_(self.scale, 3.0)

    torch.manual_seed(5)
    here = Outer()
    with torch.device("meta"):
        net = Outer()
    torch.manual_seed(5)
    SingleDeviceStrategy().shard(net, FullPrecision(), loads_weights=False)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), here.parameters(), strict=True))
    assert net.scale.no_decay


def test_what_torch_builds_of_parts_is_filled_as_here() -> None:
    """Attention fills itself as when built here, and a tied weight is filled by the module that had it first."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.attention = nn.Embedding(5, 4), nn.TransformerEncoderLayer(4, 2, 8)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.words.weight

    torch.manual_seed(5)
    here = Net()
    with torch.device("meta"):
        net = Net()
    torch.manual_seed(5)
    SingleDeviceStrategy().shard(net, FullPrecision(), loads_weights=False)
    assert net.head.weight is net.words.weight
    for (name, p), q in zip(net.named_parameters(), here.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_no_init_draws_nothing() -> None:
    """Modules constructed without initialisation draw no random number and keep shapes and names."""
    state = torch.get_rng_state()
    with NoInit():
        net = nn.Sequential(nn.Linear(3, 4), nn.Conv2d(1, 2, 3), nn.Embedding(5, 2), nn.LayerNorm(4))
        nn.init.xavier_normal_(net[0].weight)  # type: ignore[arg-type]
    assert torch.equal(torch.get_rng_state(), state)
    assert net[0].weight.shape == (4, 3)
    nn.Linear(3, 4)
    assert not torch.equal(torch.get_rng_state(), state)
