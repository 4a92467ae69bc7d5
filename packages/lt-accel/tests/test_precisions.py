"""The precisions beyond one format: a loss scale that is torch's own, and packages that say when they are missing."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types
from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from lt_accel import (
    BFloat16MixedPrecision,
    BitsandbytesPrecision,
    Float8Precision,
    Float16MixedPrecision,
    MixedPrecision,
    TransformerEnginePrecision,
)
from lt_accel.precision.one_format import OneFormat
from lt_interface import (
    CheckpointError,
    MisconfigurationException,
    MissingPackageError,
    Plan,
    Precision,
    PreparesOptimizers,
)
from lt_interface.registry import precisions
from lt_interface.testing import PrecisionConformance


def scaler(**options: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **{"init_scale": 2.0**8, "growth_interval": 3, **options})


class TestFloat16Mixed(PrecisionConformance):
    tolerance = 1e-2

    def make(self) -> Any:
        return MixedPrecision("16-mixed", "cpu", scaler())


class TestSeveralOptimizers(PrecisionConformance):
    """The rules hold where the scale waits for the end of the batch."""

    tolerance = 1e-2

    def make(self) -> Any:
        precision = MixedPrecision("16-mixed", "cpu", scaler())
        nets = [torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1) for _ in range(2)]
        assert precision.prepare(nets) is not None
        return precision


class TestDisabledScaler(PrecisionConformance):
    """A scaler that is switched off changes nothing."""

    tolerance = 1e-2

    def make(self) -> Any:
        return MixedPrecision("16-mixed", "cpu", scaler(enabled=False))


class TestBFloat16ByObject(PrecisionConformance):
    tolerance = 5e-2

    def make(self) -> Any:
        return MixedPrecision("bf16-mixed", "cpu")


if importlib.util.find_spec("torchao") is not None:

    @pytest.mark.filterwarnings("ignore")  # of torchao's own import
    class TestFloat8(PrecisionConformance):
        """On any device, with 8 bits emulated."""

        tolerance = 1.5e-1

        def make(self) -> Any:
            return Float8Precision(config=importlib.import_module("torchao.float8").Float8LinearConfig(emulate=True))


def weights(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


class Pair:
    """Two networks with an optimizer each, and losses that may be infinite."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.nets = [nn.Linear(4, 1), nn.Linear(4, 1)]
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in self.nets]

    def loss(self, index: int, factor: float = 1.0) -> Tensor:
        x = torch.ones(2, 4) * (index + 1)
        loss: Tensor = self.nets[index](x).pow(2).mean() * factor
        return loss


def test_several_optimizers_share_one_update_a_batch() -> None:
    """Weights and scale are those of torch's own loop, which updates once after all optimizers have stepped."""
    ours, theirs = Pair(), Pair()
    precision, reference = MixedPrecision("16-mixed", "cpu", scaler()), scaler()
    end_batch = precision.prepare(ours.optimizers)
    assert end_batch is not None
    for batch in range(8):
        factors = [torch.inf if (batch, k) in {(1, 0), (4, 1), (5, 0), (5, 1)} else 1.0 for k in range(2)]
        for k in range(2):
            ours.optimizers[k].zero_grad()
            precision.scale(ours.loss(k, factors[k])).backward()  # type: ignore[no-untyped-call]
            theirs.optimizers[k].zero_grad()
            reference.scale(theirs.loss(k, factors[k])).backward()
        for k in range(2):
            assert precision.step(ours.optimizers[k]) is (factors[k] == 1.0)
            reference.step(theirs.optimizers[k])
        end_batch()
        reference.update()
        assert precision.state_dict() == reference.state_dict()
        for a, b in zip(ours.nets, theirs.nets, strict=True):
            assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_an_optimizer_of_several_may_step_often_in_a_batch() -> None:
    """Each of its steps is on gradients of true size; one that overflows lowers the scale once, at the end."""
    pair, plain = Pair(), Pair()
    precision = MixedPrecision("16-mixed", "cpu", scaler())
    end_batch = precision.prepare(pair.optimizers)
    assert end_batch is not None
    held = precision.scale(pair.loss(1))
    held.backward()  # type: ignore[no-untyped-call]
    plain.loss(1).backward()  # type: ignore[no-untyped-call]
    for factor in (1.0, 1.0, torch.inf, 1.0):
        pair.optimizers[0].zero_grad()
        plain.optimizers[0].zero_grad()
        precision.scale(pair.loss(0, factor)).backward()  # type: ignore[no-untyped-call]
        precision.unscale(pair.optimizers[0])
        assert precision.step(pair.optimizers[0]) is (factor == 1.0)
        if factor == 1.0:
            plain.loss(0).backward()  # type: ignore[no-untyped-call]
            plain.optimizers[0].step()
    assert precision.step(pair.optimizers[1])
    plain.optimizers[1].step()
    end_batch()
    for a, b in zip(pair.nets, plain.nets, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert precision.scaler is not None
    assert precision.scaler.get_scale() == 2.0**7


def test_a_step_that_a_user_leaves_out_is_forgotten() -> None:
    """Gradients that were unscaled and not stepped on do not disturb the next batch."""
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    precision = MixedPrecision("16-mixed", "cpu", scaler())
    end_batch = precision.prepare([optimizer])
    assert end_batch is not None
    for steps in (False, True):
        optimizer.zero_grad()
        precision.scale(net(torch.ones(1, 4)).sum()).backward()  # type: ignore[no-untyped-call]
        precision.unscale(optimizer)
        assert net.bias.grad is not None
        assert net.bias.grad.item() == 1.0
        if steps:
            assert precision.step(optimizer)
        end_batch()


def test_gradients_of_a_loss_that_was_not_scaled_are_refused() -> None:
    """loss.backward() in place of manual_backward is one error that names it."""
    net = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.ones(1, 4)).sum().backward()
    precision = MixedPrecision("16-mixed", "cpu", scaler())
    with pytest.raises(MisconfigurationException, match=r"self\.manual_backward\(loss\)"):
        precision.step(optimizer)


def test_lbfgs_is_refused_by_name() -> None:
    """An optimizer that calls its closure itself cannot skip a step, and is refused where the run is built."""

    class Own(torch.optim.SGD):
        def step(self, closure: Any) -> None:  # type: ignore[override]
            closure()

    parameters = [nn.Parameter(torch.ones(1))]
    for optimizer in (torch.optim.LBFGS(parameters), Own(parameters, lr=0.1)):
        with pytest.raises(MisconfigurationException, match=f"{type(optimizer).__name__}.*bf16-mixed"):
            MixedPrecision("16-mixed", "cpu", scaler()).prepare([optimizer])


def test_complex_parameters_with_a_loss_scale_are_refused() -> None:
    """The optimizer that holds them is named where the run is built; torch would fail in the first step."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1) * 1j)], lr=0.1)
    with pytest.raises(MisconfigurationException, match=r"complex parameters in SGD.*bf16-mixed"):
        MixedPrecision("16-mixed", "cpu", scaler()).prepare([optimizer])


Named = namedtuple("Named", "x n")


@dataclass(frozen=True)
class Record:
    x: Tensor
    name: str = "a"


@pytest.mark.parametrize(
    "make",
    [
        lambda x: [x, 3],
        lambda x: (x, None),
        lambda x: Named(x, "s"),
        lambda x: {"x": x, "n": {"y": [x]}},
        lambda x: OrderedDict(x=x),
        lambda x: UserDict(x=x),
        Record,
        lambda x: pack_sequence([x, x[:1]]),
    ],
)
def test_each_kind_of_batch_is_cast(make: Any) -> None:
    """Floating-point tensors get the format in whatever holds them; that is made anew, and all else is as it was."""
    x = torch.randn(2, 3)
    batch = make(x)
    found = OneFormat(torch.bfloat16).convert_batch(batch)
    assert repr(found) == repr(make(x.to(torch.bfloat16)))
    assert type(found) is type(batch)
    assert repr(batch) == repr(make(x))
    kept = make(torch.arange(2))
    assert repr(OneFormat(torch.bfloat16).convert_batch(kept)) == repr(kept)


def test_a_scale_survives_pickling_and_torchs_own_state() -> None:
    """A copy for another process goes on with the same scale; a state that torch's scaler wrote can be loaded."""
    precision = MixedPrecision("16-mixed", "cpu", scaler(init_scale=32.0))
    again = pickle.loads(pickle.dumps(precision))
    assert again.scaler.get_scale() == 32.0
    again.load_state_dict(scaler(init_scale=4.0).state_dict())
    assert again.scaler.get_scale() == 4.0
    again.load_state_dict({})
    assert again.scaler.get_scale() == 4.0


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        ({"scale": None}, "scale=None"),
        ({"scale": "128"}, "scale='128'"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"scale": 0.0, "growth_interval": [3]}, "scale=0.0, growth_interval=[3]"),
        ({"_growth_tracker": -1}, "_growth_tracker=-1"),
        *(({name: ...}, f"no {name}") for name in ("scale", "growth_factor", "backoff_factor", "_growth_tracker")),
        (None, "'scale' of type str"),
        ([], "[] of type list"),
    ],
)
def test_a_damaged_scale_is_named(damage: Any, got: str) -> None:
    """A saved scale that lacks a number, or has something else in its place, is one clear error and changes nothing."""
    precision = MixedPrecision("16-mixed", "cpu", scaler(init_scale=32.0))
    whole = scaler(init_scale=4.0).state_dict()
    state: Any = {k: v for k, v in {**whole, **damage}.items() if v is not ...} if isinstance(damage, dict) else damage
    with pytest.raises(CheckpointError, match=r"loss scale in the checkpoint must be whole\. Got ") as error:
        precision.load_state_dict("scale" if state is None else state)
    assert f"Got {got}." in str(error.value)
    assert precision.scaler.get_scale() == 32.0


def test_no_scaler_is_made_before_a_run() -> None:
    """A precision that is only constructed touches no device, and bf16 never has a scaler."""
    assert Float16MixedPrecision("cuda").scaler is None
    assert BFloat16MixedPrecision().scaler is None
    assert Float16MixedPrecision().state_dict() == {}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MixedPrecision("32-mixed"), '"16-mixed" or "bf16-mixed"'),
        (lambda: MixedPrecision("bf16-mixed", "cpu", scaler()), "needs no scaler"),
        (lambda: BitsandbytesPrecision("nf5"), "nf4, nf4-dq"),
        (lambda: MixedPrecision(["16-mixed"]), '"16-mixed" or "bf16-mixed"'),  # type: ignore[arg-type]
        (lambda: MixedPrecision("16-mixed", "gpus"), "a kind that torch has. Got 'gpus'"),
        (lambda: MixedPrecision("16-mixed", 0), "a kind that torch has. Got 0"),  # type: ignore[arg-type]
        (lambda: MixedPrecision("16-mixed", "cpu", True), "must be a torch.amp.GradScaler. Got bool"),  # type: ignore[arg-type]
        (lambda: MixedPrecision(16, "gpus", True), "3 problems"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments_are_refused(make: Any, words: str) -> None:
    """A wrong name, mode or scaler is one error with what to write."""
    with pytest.raises(MisconfigurationException, match=words):
        make()


def test_float16_on_a_processor_is_a_problem() -> None:
    """One line offers bf16-mixed; a scaler that was made for the CPU shows that it is meant."""
    (problem,) = Float16MixedPrecision().problems(Plan())
    assert str(problem).endswith('Write precision="bf16-mixed".')
    assert not Float16MixedPrecision().problems(Plan(accelerator="gpu", device_type="cuda"))
    assert not MixedPrecision("16-mixed", "cpu", scaler()).problems(Plan())
    (problem,) = MixedPrecision("bf16-mixed", "cuda").problems(Plan())
    assert "cpu" in str(problem)


class Batch(UserDict[str, Any]):
    """Mapping that is no dict, as tokenizers return."""


@dataclass
class Labelled:
    """Batch with attributes.

    Attributes:
        x: Numbers.
        y: Their labels.
    """

    x: Any
    y: Any


@pytest.mark.parametrize(
    "make", [Labelled, lambda x, y: Batch(x=x, y=y), lambda x, y: (x, [y])], ids=["class", "map", "list"]
)
def test_batches_of_every_kind_get_the_format(make: Any) -> None:
    """Floating-point tensors have the format wherever they lie in a batch, whole numbers stay, and so does its kind."""
    x, y = torch.ones(2), torch.ones(2, dtype=torch.int64)
    found = OneFormat(torch.bfloat16).convert_batch(make(x, y))
    assert type(found) is type(make(x, y))
    seen = found.x if isinstance(found, Labelled) else found["x"] if isinstance(found, Batch) else found[0]
    labels = found.y if isinstance(found, Labelled) else found["y"] if isinstance(found, Batch) else found[1][0]
    assert (seen.dtype, labels is y) == (torch.bfloat16, True)


MISSING = {
    "torchao": (Float8Precision, r"pip install 'lt-accel\[float8\]'"),
    "bitsandbytes": (lambda: BitsandbytesPrecision("nf4"), r"pip install 'lt-accel\[bitsandbytes\]'"),
    "transformer_engine": (
        TransformerEnginePrecision,
        r"pip install --no-build-isolation 'lt-accel\[transformer-engine\]'",
    ),
}


@pytest.mark.parametrize("package", MISSING)
def test_a_missing_package_is_named_with_its_command(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the exact command."""
    make, command = MISSING[package]
    for module in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingPackageError, match=command) as error:
        make()
    assert error.value.name == package


@pytest.mark.parametrize(
    "name", ["16-mixed", "bf16-mixed", "transformer-engine", "transformer-engine-float16", "float8"]
)
def test_names_are_registered(name: str) -> None:
    """Each name leads to a class that keeps the contract."""
    kind = precisions.get(name)
    assert issubclass(kind, (MixedPrecision, TransformerEnginePrecision))
    if kind in (Float16MixedPrecision, BFloat16MixedPrecision):
        assert isinstance(kind(), Precision)
        assert isinstance(kind(), PreparesOptimizers)
        assert kind().name == name


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.filterwarnings("ignore")  # of torchao's own import
def test_float8_needs_a_card_unless_it_is_emulated() -> None:
    """The plan of a CPU is refused in one line; the emulation is not."""
    (problem,) = Float8Precision().problems(Plan())
    assert "CUDA card" in str(problem)
    config = importlib.import_module("torchao.float8").Float8LinearConfig(emulate=True)
    assert not Float8Precision(config=config).problems(Plan())


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("mode", ["nf4", "nf4-dq", "fp4", "int8"])
def test_linear_layers_are_kept_in_few_bits(mode: str) -> None:
    """Converted layers stay close to the old ones; ties, ignored layers and the rest of the module are as they were."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64)), "head": nn.Linear(64, 64)})
    net["again"] = net["body"]
    net["body"].append(net["body"][0])
    x = torch.randn(8, 64)
    expected = net["head"](net["body"](x))
    precision = BitsandbytesPrecision(mode, dtype=torch.bfloat16, ignore_modules={"head"})
    precision.convert(net).to("cpu")
    assert type(net["head"]) is nn.Linear
    assert net["body"][0].weight.dtype in (torch.uint8, torch.int8)
    assert net["again"][0] is net["body"][0] is net["body"][2]
    assert net["body"][1].weight.dtype is net["head"].weight.dtype is torch.bfloat16
    out = net["head"](net["body"](precision.convert_batch(x)))
    assert out.dtype is torch.bfloat16
    assert (out.float() - expected).norm() / expected.norm() < (0.02 if mode == "int8" else 0.2)


def test_transformer_engine_gets_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its layers take the place of torch's with the weights, names and ties as they were; odd sizes stay torch's."""
    package, engine, recipes = (types.ModuleType(name) for name in ("te", "te.pytorch", "te.recipe"))
    linear = type("Linear", (nn.Linear,), {})
    norm = type("LayerNorm", (nn.LayerNorm,), {})
    engine.__dict__.update(Linear=linear, LayerNorm=norm)
    recipes.__dict__.update(Format=types.SimpleNamespace(HYBRID=2), DelayedScaling=dict)
    monkeypatch.setitem(sys.modules, "transformer_engine", package)
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", engine)
    monkeypatch.setitem(sys.modules, "transformer_engine.common.recipe", recipes)
    precision = TransformerEnginePrecision(recipe={"fp8_format": "HYBRID"})
    assert precision.recipe == {"fp8_format": 2}
    net = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 3))
    net.append(net[0])
    expected = {name: p.detach().to(torch.bfloat16) for name, p in net.state_dict().items()}
    precision.convert(net)
    assert [type(layer) for layer in net] == [linear, norm, nn.Linear, linear]
    assert net[3] is net[0]
    assert all(torch.equal(p, expected[name]) for name, p in net.state_dict().items())
    with pytest.raises(MisconfigurationException, match="HYBRID"):
        TransformerEnginePrecision(recipe={"fp8_format": "HYBRYD"})
    (problem,) = precision.problems(Plan())
    assert "CUDA card" in str(problem)
