"""A tree of values and tensors comes back as it was, or is refused with the path to what cannot be kept."""

from __future__ import annotations

import argparse
import datetime
import decimal
import enum
import fractions
import math
import pathlib
import struct
import tempfile
import types
import uuid
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lt_core.checkpoint import load_checkpoint, save_checkpoint, soften, try_encode
from lt_interface import CheckpointError

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]
DTYPES += [getattr(torch, n) for n in ("float8_e8m0fnu", "float4_e2m1fn_x2") if hasattr(torch, n)]


def round_trip(value: Any) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x.ckpt"
        save_checkpoint({"value": value}, path)
        return load_checkpoint(path)["value"]


def bits(tensor: torch.Tensor) -> bytes:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    return tensor.view(integers[tensor.element_size()]).contiguous().numpy().tobytes()


def same(a: Any, b: Any) -> bool:
    """Compare type, order, bits, shapes and strides."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.stride() == b.stride() and bits(a) == bits(b)
    if isinstance(a, np.ndarray):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if isinstance(a, np.generic):
        return bool(a.dtype == b.dtype and a.tobytes() == b.tobytes())
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, dict):
        pairs = list(zip(a.items(), b.items(), strict=False))
        return len(a) == len(b) and all(same(x[0], y[0]) and same(x[1], y[1]) for x, y in pairs)
    if isinstance(a, (set, frozenset)):
        return a == b and Counter(map(type, a)) == Counter(map(type, b))
    if isinstance(a, (list, tuple, deque)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or repr(a) == repr(b)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.binary()
    | st.complex_numbers()
    | st.sampled_from([torch.float32, torch.bfloat16, torch.device("cpu"), torch.device("cuda", 1), torch.strided])
    | st.just(torch.Size([2, 3]))
    | st.sampled_from([pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:\\x")])
    | st.datetimes(timezones=st.none() | st.just(datetime.timezone(datetime.timedelta(hours=-3), "Q")))
    | st.dates()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from([np.float32(1.5), np.float64("nan"), np.int8(-3), np.bool_(True), np.complex64(1j)])
    | st.sampled_from([np.datetime64("2020-02-03", "ns"), np.dtype("float32"), Ellipsis, range(1, 9, 2)])
)
hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.dates(),
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    data = draw(st.binary(min_size=1, max_size=32))
    count = math.prod(shape) * dtype.itemsize
    raw = bytearray((data * (count // len(data) + 1))[:count])
    if dtype is torch.bool:
        raw = bytearray(b & 1 for b in raw)
    flat = torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    tensor = flat.view(dtype).view(shape)
    for step in draw(st.lists(st.sampled_from(["transpose", "stride", "expand", "slice", "flip"]), max_size=3)):
        if step == "transpose" and tensor.dim() > 1:
            tensor = tensor.transpose(0, -1)
        elif step == "stride" and tensor.dim():
            tensor = tensor[..., ::2]
        elif step == "slice" and tensor.dim():
            tensor = tensor[1:]
        elif step == "expand":
            tensor = tensor.expand(3, *tensor.shape)
        elif step == "flip" and tensor.dim() > 1:
            tensor = tensor.movedim(0, 1)
    return tensor


trees = st.recursive(
    leaves | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.sampled_from(["$", "$repr", "v", "__metadata__"]), inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=4)
        | st.dictionaries(hashable, inner, max_size=3).map(OrderedDict)
        | st.dictionaries(hashable, inner, max_size=3).map(lambda d: defaultdict(list, d))
        | st.dictionaries(hashable, st.integers(), max_size=3).map(Counter)
        | st.sets(hashable, max_size=4)
        | st.frozensets(hashable, max_size=4)
        | st.lists(inner, max_size=3).map(lambda v: deque(v, 5))
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(trees)
def test_round_trip_of_any_tree(tree: Any) -> None:
    """Every tree of known values comes back equal in type, order, bits, shape and strides."""
    assert same(round_trip(tree), tree)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None)
@given(trees)
def test_round_trip_of_many_trees(tree: Any) -> None:
    """As above, at length."""
    assert same(round_trip(tree), tree)


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        -float("nan"),
        float("-inf"),
        -0.0,
        5e-324,
        10**5000,
        -(2**63) - 1,
        "\ud83d\ude00",
        "\x00\u2028é",
        {"$": "t", "v": "x"},
        {"$repr": "f"},
        {None: 1, 1: 2, (1, "a"): 3, 2.5: 4},
        {True: 1, "1": 2},
        [float(i) for i in range(1000)] + [math.nan],
        [2**63 - 1, -(2**63), 2**63],
        defaultdict(None, {1: 2}),
        deque([1, 2, 3], maxlen=2),
        slice(1, None, (2, 3)),
        bytearray(b"ab"),
        argparse.Namespace(y=1, x=[2]),
        types.SimpleNamespace(a=1),
        datetime.datetime(2020, 1, 1, fold=1, tzinfo=datetime.timezone.utc),
        decimal.Decimal("1.10"),
        fractions.Fraction(-1, 3),
        uuid.UUID(int=5),
        torch.channels_last,
        torch.jagged,
        np.dtype("<M8[ns]"),
        {1, "a", (2,), frozenset({3})},
    ],
    ids=lambda v: type(v).__name__,
)
def test_values_that_json_lacks(value: Any) -> None:
    """Values that JSON has no form for survive."""
    assert same(round_trip(value), value)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.arange(6)[::-1],
        np.arange(4, dtype=">i4"),
        np.array(["a", "bcd"]),
        np.array([b"x", b"yz"]),
        np.array(["2020-01-01", "NaT"], dtype="M8[D]"),
        np.array([1, 2], dtype=np.longdouble),
        np.array([1j], dtype=np.complex128),
        np.zeros((0, 3), dtype=np.uint16),
        np.zeros((0, 3), dtype="U4"),
        np.zeros((2, 0), dtype=">i4"),
        np.array(3.5),
        np.frombuffer(b"\x01\x02", dtype=np.uint8),
        np.zeros(3, dtype="U0"),
    ],
    ids=lambda a: f"{a.dtype.str}{a.shape}",
)
def test_numpy_arrays(array: np.ndarray[Any, Any]) -> None:
    """Numpy arrays of plain dtypes come back as arrays, whatever their order and byte order."""
    back = round_trip(array)
    assert same(back, array)
    assert back.flags.writeable


def test_ints_and_strings_of_subclasses_come_back_plain() -> None:
    """A member of an int or str enum comes back as the plain value that it equals."""
    color = enum.IntEnum("color", "RED")
    stage = enum.Enum("stage", {"FIT": "fit"}, type=str)
    back = round_trip([color.RED, stage.FIT, type("D", (dict,), {})(a=1), np.str_("x")])
    assert same(back, [1, "fit", {"a": 1}, "x"])


def test_state_dict_keeps_the_versions_of_its_modules() -> None:
    """The metadata that Module.state_dict() hangs on its dict survives."""
    state = nn.Sequential(nn.BatchNorm1d(2)).state_dict()
    back = round_trip(state)
    assert isinstance(back, OrderedDict)
    assert vars(back) == vars(state)


class Color(enum.Enum):
    RED = 1


Point = namedtuple("Point", "x y")
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x: x, "the function"),
        (nn.Linear, "the class Linear"),
        (nn.Linear(1, 1), "Linear"),
        (object(), "object"),
        (Point(1, 2), "_asdict"),
        (Color.RED, ".value"),
        (np.array([object()]), "dtype object"),
        (np.zeros(1, dtype=[("a", "i4")]), "ndarray"),
        (LOOP, "nested at most"),
        (torch.empty(2, device="meta"), "meta"),
        (nn.UninitializedParameter(), "lazy"),
        ({torch.ones(1): 1}, "key"),
        (defaultdict(lambda: 0), "default_factory"),
        (torch.Generator(), "Generator"),
    ],
    ids=lambda v: None if not isinstance(v, str) else v,
)
def test_refused_values_are_named_with_their_path(value: Any, words: str) -> None:
    """What cannot be kept is refused with the path to it, and a trial says the same."""
    tree = {"callbacks": {"Mine": {"state": [1, {"deep": value}]}}}
    with pytest.raises(CheckpointError) as caught:
        save_checkpoint(tree, "/nonexistent/never.ckpt")
    assert words in str(caught.value)
    path = "['callbacks']['Mine']['state'][1]"
    assert path in str(caught.value)
    problem = try_encode(tree["callbacks"]["Mine"], "callback Mine")
    assert problem is not None
    assert problem.where.startswith("callback Mine['state'][1]")
    assert problem.fix


@pytest.mark.filterwarnings("ignore:.*quantiz.*")
def test_quantized_tensors_are_refused() -> None:
    """A quantized tensor, which has more than its elements, is refused."""
    problem = try_encode(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8), "x")
    assert problem is not None
    assert "quantized" in problem.rule


def test_try_encode_accepts_what_can_be_kept() -> None:
    """A trial of a good state finds no problem."""
    assert try_encode({"a": torch.ones(2), "b": {1: (2, None)}}, "callback X") is None


def test_soften_replaces_only_what_can_not_be_kept() -> None:
    """Hyper-parameters keep their plain values; classes, functions and objects become their repr."""
    given = {"lr": 0.1, "act": nn.ReLU, "net": {"cls": nn.Linear, "n": [1, len]}, "t": (1, {2}), "x": torch.ones(1)}
    kept, names = soften(given)
    assert sorted(names) == ["act", "net.cls", "net.n.1"]
    assert kept["act"] == {"$repr": repr(nn.ReLU)}
    assert kept["lr"] == 0.1
    assert kept["net"]["n"] == [1, {"$repr": repr(len)}]
    assert kept["t"] == (1, {2})
    assert same(round_trip(kept), kept)
    assert given["act"] is nn.ReLU


def test_soften_of_plain_values_changes_nothing() -> None:
    """Plain hyper-parameters come back as they are."""
    given = {"a": 1}
    assert soften(given) == (given, [])


def test_soften_survives_anything() -> None:
    """Values that hold themselves or whose repr fails stop nothing."""

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    kept, names = soften({"a": Odd(), "loop": LOOP, 3: Odd()})
    assert names[0] == "a"
    assert "RuntimeError" in kept["a"]["$repr"]
    assert try_encode(kept, "x") is None


def test_large_trees_do_not_meet_the_header_limit(tmp_path: pathlib.Path) -> None:
    """A tree of many megabytes of plain values is kept, and the file stays readable for safetensors."""
    from safetensors import safe_open

    tree: dict[str, Any] = {"words": [f"word {i}" * 5 for i in range(150_000)], "lt_tree": torch.arange(3)}
    save_checkpoint(tree, tmp_path / "x.ckpt")
    back = load_checkpoint(tmp_path / "x.ckpt")
    assert back["words"] == tree["words"]
    assert torch.equal(back["lt_tree"], tree["lt_tree"])
    with safe_open(tmp_path / "x.ckpt", "pt") as file:
        assert torch.equal(file.get_tensor("lt_tree"), tree["lt_tree"])


def test_only_a_dict_is_a_checkpoint(tmp_path: pathlib.Path) -> None:
    """Another top-level value is refused."""
    with pytest.raises(CheckpointError, match="a checkpoint is a dict"):
        save_checkpoint([1], tmp_path / "x.ckpt")  # type: ignore[arg-type]


def test_bytes_of_a_subclass_keep_their_content_whatever_it_converts_to():
    """Bytes of a subclass are saved as they are, not as what the subclass converts to."""
    from lt_core.checkpoint.format.tree import clone

    class Told(bytes):
        def __bytes__(self):
            return b"other"

    assert clone({"a": Told(b"x")}) == {"a": b"x"}
