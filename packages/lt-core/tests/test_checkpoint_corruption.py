"""Damaged, foreign and hostile files are refused with one clear error, and no code of theirs ever runs."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import random
import re
import resource
import subprocess
import sys
import zlib
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lt_core.checkpoint import load_checkpoint, peek, save_checkpoint, verify
from lt_core.checkpoint.format.values import READERS
from lt_interface import CheckpointError

TREE = {
    "epoch": 3,
    "progress": {"step": 4, "epoch": 3},
    "state_dict": {"layer.weight": torch.arange(300.0), "layer.bias": torch.ones(7, dtype=torch.float64)},
    "big": torch.arange(2000),
    "zeros": torch.zeros(1024, dtype=torch.uint8),
    "x": [1.5, None, (1, 2), {"a": "b" * 50}],
}
NAMES = ["model.layer.weight", "model.layer.bias", "big", "zeros"]


@pytest.fixture
def good(tmp_path: pathlib.Path) -> pathlib.Path:
    save_checkpoint(TREE, tmp_path / "good.ckpt")
    return tmp_path / "good.ckpt"


def tensor_at(path: pathlib.Path, position: int) -> str | None:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for name, fields in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = fields["data_offsets"]
            if start <= position - 8 - length < end:
                return str(name)
    return None


def refused(path: pathlib.Path) -> str:
    """Return the message with which both load and verify refuse a file."""
    with pytest.raises(CheckpointError) as loaded:
        load_checkpoint(path)
    with pytest.raises(CheckpointError) as verified:
        verify(path)
    assert str(path) in str(verified.value)
    assert str(path) in str(loaded.value)
    return str(loaded.value)


def test_truncation_at_any_point_is_noticed(good: pathlib.Path) -> None:
    """A file cut anywhere is refused; a cut inside the data names the first tensor that is not whole."""
    raw, bad = good.read_bytes(), good.with_name("bad.ckpt")
    cuts = {*range(64), *range(64, len(raw), 97), *range(len(raw) - 9, len(raw)), *range(0, len(raw), 4096)}
    for cut in sorted(cuts):
        bad.write_bytes(raw[:cut])
        message = refused(bad)
        assert "damaged" in message or "truncated" in message or "empty" in message or "ends" in message
        tensor = tensor_at(good, cut)
        if tensor is not None:
            assert f'"{tensor}"' in message
        with pytest.raises(CheckpointError):
            peek(bad)


def test_a_longer_file_is_noticed(good: pathlib.Path) -> None:
    """Bytes after the end are refused."""
    bad = good.with_name("bad.ckpt")
    bad.write_bytes(good.read_bytes() + b"\0")
    assert "longer" in refused(bad)


def flip(good: pathlib.Path, count: int, seed: int) -> None:
    raw, bad, draw = good.read_bytes(), good.with_name("bad.ckpt"), random.Random(seed)
    for _ in range(count):
        bit = draw.randrange(len(raw) * 8)
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        bad.write_bytes(damaged)
        message = refused(bad)
        tensor = tensor_at(good, bit // 8)
        if tensor is not None:
            assert f'"{tensor}"' in message


def test_flipped_bits_are_noticed(good: pathlib.Path) -> None:
    """Any flipped bit is noticed, and one in a tensor names it."""
    flip(good, 800, seed=1)


def test_every_flipped_bit_of_the_start_is_noticed(good: pathlib.Path) -> None:
    """Each single bit of the length and the first fields is covered."""
    raw, bad = good.read_bytes(), good.with_name("bad.ckpt")
    for bit in range(8 * 80):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        bad.write_bytes(damaged)
        refused(bad)


@pytest.mark.slow
def test_ten_thousand_flipped_bits_are_noticed(good: pathlib.Path) -> None:
    """As above, at length."""
    flip(good, 10_000, seed=2)


def test_zeroed_and_swapped_blocks_are_noticed(good: pathlib.Path) -> None:
    """Blocks of zeros and blocks in each other's place are noticed."""
    raw, bad = good.read_bytes(), good.with_name("bad.ckpt")
    for size in (64, 512, 4096):
        for start in range(0, len(raw) - 2 * size, size):
            for damaged in (
                raw[:start] + b"\0" * size + raw[start + size :],
                raw[:start]
                + raw[start + size : start + 2 * size]
                + raw[start : start + size]
                + raw[start + 2 * size :],
            ):
                if damaged != raw:
                    bad.write_bytes(damaged)
                    refused(bad)


def test_a_missing_file_names_its_neighbours(good: pathlib.Path) -> None:
    """A path that does not exist is an error that suggests the nearest name."""
    assert 'Did you mean "good.ckpt"?' in refused(good.with_name("goood.ckpt"))
    assert "folder does not exist" in refused(good.parent / "no" / "x.ckpt")


def test_what_is_no_checkpoint_is_refused(good: pathlib.Path) -> None:
    """Pickles, zips, folders, pipes, devices, texts and other safetensors files are named for what they are."""
    from safetensors.torch import save_file

    bad = good.with_name("bad.ckpt")
    torch.save({"state_dict": {}}, bad)
    assert "import_lightning" in refused(bad)
    torch.save({"state_dict": {}}, bad, _use_new_zipfile_serialization=False)
    assert "pickle" in refused(bad)
    for protocol in (2, 3, 4, 5):
        bad.write_bytes(pickle.dumps({"a": list(range(50))}, protocol))
        assert "pickle" in refused(bad)
    bad.write_bytes(b"")
    assert "empty" in refused(bad)
    bad.write_text("epoch,loss\n" * 20)
    assert "no checkpoint" in refused(bad)
    bad.write_bytes(os.urandom(3))
    refused(bad)
    save_file({"x": torch.ones(2)}, bad)
    assert "safetensors.torch.load_file" in refused(bad)
    bad.unlink()
    os.mkfifo(bad)
    assert "regular file" in refused(bad)
    assert "a folder" in refused(good.parent)
    assert "regular file" in refused(pathlib.Path("/dev/zero"))


def forge(path: pathlib.Path, document: dict[str, Any] | str | bytes, data: bytes = b"") -> pathlib.Path:
    """Write a file whose checksums of the header are right, whatever the header says."""
    if isinstance(document, dict):
        document = json.dumps(document, separators=(",", ":"))
    raw = document.encode() if isinstance(document, str) else document
    place = 8 + len('{"__metadata__":{"lt_crc32":"')
    whole = bytearray(len(raw).to_bytes(8, "little") + raw)
    whole[place : place + 8] = b"0" * 8
    whole[place : place + 8] = f"{zlib.crc32(whole):08x}".encode()
    path.write_bytes(bytes(whole) + data)
    return path


def header(
    tree: Any = None, entries: dict[str, Any] | None = None, data: bytes = b"", **metadata: Any
) -> dict[str, Any]:
    entries = entries or {}
    checksums = ""
    for fields in entries.values():
        offsets = fields.get("data_offsets", [0, 0]) if isinstance(fields, dict) else [0, 0]
        try:
            checksums += f"{zlib.crc32(data[slice(*offsets)]):08x}"
        except TypeError:
            checksums += "0" * 8
    first = {"lt_crc32": "0" * 8, "lt_tensor_crc32": checksums, "format": "pt", "lt_format": "1"}
    document = tree if isinstance(tree, str) else json.dumps({"tree": tree, "layouts": metadata.pop("layouts", {})})
    return {"__metadata__": {**first, "lt_tree": document, **metadata}, **entries}


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
EIGHT = bytes(8)


def test_the_forger_can_write_a_good_file(tmp_path: pathlib.Path) -> None:
    """The forged files below differ from good ones only in what they say."""
    tree = {"a": {"$": "t", "v": "x"}, "b": {"$": "tuple", "v": [1]}}
    path = forge(tmp_path / "x", header(tree, {"x": F32}, EIGHT), EIGHT)
    assert load_checkpoint(path)["b"] == (1,)


BAD_ENTRIES: list[tuple[dict[str, Any], bytes]] = [
    ({"x": {**F32, "data_offsets": [0, 12]}}, bytes(12)),
    ({"x": {**F32, "data_offsets": [-8, 0]}}, EIGHT),
    ({"x": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    ({"x": {**F32, "data_offsets": [0, 8.0]}}, EIGHT),
    ({"x": {**F32, "data_offsets": [0, "8"]}}, EIGHT),
    ({"x": {**F32, "data_offsets": [0]}}, EIGHT),
    ({"x": {**F32, "data_offsets": [0, 10**30], "shape": [10**30 // 4]}}, EIGHT),
    ({"x": {**F32, "shape": [-1, -2]}}, EIGHT),
    ({"x": {**F32, "shape": [True, 2]}}, EIGHT),
    ({"x": {**F32, "shape": [1] * 2000 + [2]}}, EIGHT),
    ({"x": {**F32, "dtype": "F31"}}, EIGHT),
    ({"x": {**F32, "dtype": ["F32"]}}, EIGHT),
    ({"x": {"dtype": "F32"}}, EIGHT),
    ({"x": [1, 2]}, EIGHT),
    ({"x": F32, "y": F32}, EIGHT),
    ({"x": F32, "y": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
    ({"x": F32, "y": {**F32, "data_offsets": [16, 24]}}, bytes(24)),
    ({"x": {**F32, "shape": [2**62, 2**62, 0], "data_offsets": [0, 8]}}, EIGHT),
]


@pytest.mark.parametrize(("entries", "data"), BAD_ENTRIES)
def test_tables_out_of_form_are_refused(tmp_path: pathlib.Path, entries: dict[str, Any], data: bytes) -> None:
    """Offsets, shapes and formats that do not fit each other or the file are refused."""
    refused(forge(tmp_path / "x", header({}, entries, data), data))


BAD_HEADERS = [
    '{"__metadata__":{"lt_crc32":"00000000","lt_tensor_crc32":"","lt_format":"1","lt_format":"1","lt_tree":"{}"}}',
    '{"__metadata__":{"lt_crc32":"00000000"}}',
    '{"__metadata__":{"lt_crc32":"00000000","lt_tensor_crc32":"","lt_format":"one"}}',
    '{"__metadata__":{"lt_crc32":"00000000","lt_tensor_crc32":3,"lt_format":"1"}}',
    '{"__metadata__":{"lt_crc32":"00000000","lt_tensor_crc32":"abc","lt_format":"1"}}',
    '{"__metadata__":{"lt_crc32":"00000000"},"__metadata__":{}}',
    '{"__metadata__":{"lt_crc32":"00000000","x":' + "[" * 100_000 + "]" * 100_000 + "}}",
    '{"__metadata__":{"lt_crc32":"00000000","x":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}}",
    '{"__metadata__":{"lt_crc32":"00000000","x":NaN}}',
    '{"__metadata__":{"lt_crc32":"00000000","x":' + "9" * 5000 + "}}",
    '{"__metadata__":{"lt_crc32":"00000000"',
    b'{"__metadata__":{"lt_crc32":"00000000","x":"\xff\xfe"}}',
]


@pytest.mark.parametrize("text", BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_headers_out_of_form_are_refused(tmp_path: pathlib.Path, text: str | bytes) -> None:
    """Keys that stand twice, bottomless nesting and broken JSON are refused."""
    refused(forge(tmp_path / "x", text))


def view(*spec: Any) -> dict[str, Any]:
    return {"a": {"$": "t", "v": list(spec)}}


BAD_TREES: list[Any] = [
    [],
    None,
    3,
    {"a": {"$": "nothing", "v": 1}},
    {"a": {"$": "tuple"}},
    {"a": {"$": ["t"], "v": "x"}},
    {"a": {"$": "t", "v": "missing"}},
    {"a": {"$": "t", "v": None}},
    view("x", "float32", 2, [1], [1]),
    view("x", "float32", 0, [3], [1]),
    view("x", "float32", -1, [1], [1]),
    view("x", "float32", 0, [2], [-1]),
    view("x", "float32", 0, [1, 1], [1]),
    view("x", "float32", 0, [2**62, 2**62], [0, 0]),
    view("x", "float32", 0, [2**62, 2], [0, 0]),
    view("x", "float32", 2**62, [1], [2**62]),
    view("x", "float31", 0, [1], [1]),
    view("x", "qint8", 0, [1], [1]),
    view("x", "float32", 0, [2.0], [1]),
    {"a": {"$": "path", "v": 3}},
    {"a": {"$": "dtype", "v": "nn"}},
    {"a": {"$": "npdtype", "v": "O"}},
    {"a": {"$": "npdtype", "v": "|O"}},
    {"a": {"$": "npdtype", "v": "|V8"}},
    {"a": {"$": "npdtype", "v": "i4,O"}},
    {"a": {"$": "npscalar", "v": ["|O8", "00" * 8]}},
    {"a": {"$": "npscalar", "v": ["<f8", "00"]}},
    {"a": {"$": "array", "v": ["|O", [1], {"$": "t", "v": "x"}]}},
    {"a": {"$": "array", "v": ["<U9", [2], {"$": "t", "v": "x"}]}},
    {"a": {"$": "array", "v": ["<f8", [3], None]}},
    {"a": {"$": "defaultdict", "v": ["eval", []]}},
    {"a": {"$": "dict", "v": [[1, 2], [1, 3]]}},
    {"a": {"$": "dict", "v": [[[], 2]]}},
    {"a": {"$": "set", "v": [[1]]}},
    {"a": {"$": "size", "v": ["x"]}},
    {"a": {"$": "bytes", "v": "zz"}},
    {"a": {"$": "float", "v": "00"}},
    {"a": {"$": "int", "v": "os"}},
    {"a": {"$": "namespace", "v": {"$": "dict", "v": [[1, 2]]}}},
    {"a": {"$": "sparse", "v": ["sparse_coo", [2], True, [{"$": "t", "v": "x"}, {"$": "t", "v": "x"}]]}},
    {"a": {"$": "sparse", "v": ["strided", [2], True, [{"$": "t", "v": "x"}] * 3]}},
    {"a": {"$": "datetime", "v": ["now", 0, None]}},
    {"a": {"$": "timedelta", "v": [10**30, 0, 0]}},
    '{"tree": {}, "tree": {}, "layouts": {}}',
    '{"tree": {}}',
    '{"tree": {}, "layouts": []}',
    "[]",
    "not json",
    '{"tree": ' + "[" * 50_000 + "]" * 50_000 + ', "layouts": {}}',
    '{"tree": {"a": ' + '{"$": "tuple", "v": [' * 400 + "]}" * 400 + '}, "layouts": {}}',
]


@pytest.mark.parametrize("tree", BAD_TREES, ids=range(len(BAD_TREES)))
def test_trees_out_of_form_are_refused(tmp_path: pathlib.Path, tree: Any) -> None:
    """Nodes that this package does not write are refused with its own error."""
    entries = {"x": F32}
    with pytest.raises(CheckpointError):
        load_checkpoint(forge(tmp_path / "x", header(tree, entries, EIGHT), EIGHT))


@pytest.mark.parametrize(
    "layout",
    [
        ["float32", [2], [2**40]],
        ["float32", [2, 1], [16 * 4096, 1]],
        ["float32", [3], [1]],
        ["float32", [2, 2], [1, 1]],
        ["float64", [2], [1]],
        ["qint8", [8], [1]],
        ["float32", [2]],
        None,
    ],
)
def test_layouts_out_of_form_are_refused(tmp_path: pathlib.Path, layout: Any) -> None:
    """Strides that ask for much memory, or that do not fit the bytes, are refused."""
    document = header({"a": {"$": "t", "v": "x"}}, {"x": F32}, EIGHT, layouts={"x": layout})
    with pytest.raises(CheckpointError):
        load_checkpoint(forge(tmp_path / "x", document, EIGHT))


def test_a_newer_format_names_both_versions(tmp_path: pathlib.Path) -> None:
    """A file of a newer lt-core says which format it has, which is known here, and the command that helps."""
    versions = '{"lt_core":"9.1"}'
    message = refused(forge(tmp_path / "x", header({}, lt_format="2", lt_versions=versions)))
    assert "format 2" in message
    assert "up to 1" in message
    assert "9.1" in message
    assert "pip install --upgrade lt-core" in message


def test_unknown_metadata_is_left_alone(tmp_path: pathlib.Path) -> None:
    """A field that a later writer of the same format adds stops nothing."""
    assert load_checkpoint(forge(tmp_path / "x", header({"a": 1}, lt_more="x"))) == {"a": 1}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_huge_claims_need_no_memory(tmp_path: pathlib.Path) -> None:
    """A file that claims terabytes is refused in a process that may use little more memory than it has."""
    cases = [(2**62).to_bytes(8, "little") + b'{"__metadata__":{"lt_crc32":"00000000",', b"\xff" * 64]
    cases += [(99_999_999).to_bytes(8, "little") + b'{"__metadata__":{"lt_crc32":"00000000",']
    paths = [tmp_path / f"{i}" for i in range(len(cases))]
    for path, raw in zip(paths, cases, strict=True):
        path.write_bytes(raw)
    big = {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}
    paths.append(forge(tmp_path / "big", header({"a": {"$": "t", "v": "x"}}, {"x": big}), EIGHT))
    child = os.fork()
    if child == 0:
        with open("/proc/self/statm") as statm:
            used = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), used + (32 << 20)))
        for path in paths:
            for function in (load_checkpoint, verify, peek):
                try:
                    function(path)
                except CheckpointError:
                    continue
                except BaseException:
                    os._exit(2)
                os._exit(3)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


nodes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["x", "float32", "", "os", "|O", "<f8", "00", "2020-01-01", "sparse_coo"])
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(
            lambda tag, value: {"$": tag, "v": value},
            st.sampled_from([*READERS, "t", "sparse", "array", "dict", "tuple", "set", "frozenset", "deque", "slice"])
            | st.sampled_from(["counter", "defaultdict", "ordered", "simplenamespace", "namespace"]),
            inner | st.lists(inner, min_size=2, max_size=5),
        )
    ),
    max_leaves=15,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=st.dictionaries(st.text(max_size=3), nodes, max_size=3), layout=nodes)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_fuzzed_trees_load_or_are_refused(tmp_path: pathlib.Path, tree: Any, layout: Any) -> None:
    """Whatever the JSON says, a load returns or raises this package's own error."""
    layouts = {"x": layout} if isinstance(layout, list) else {}
    path = forge(tmp_path / "x", header(tree, {"x": F32}, EIGHT, layouts=layouts), EIGHT)
    with contextlib.suppress(CheckpointError):
        assert isinstance(load_checkpoint(path), dict)


def test_loading_imports_nothing_and_runs_nothing(tmp_path: pathlib.Path) -> None:
    """Files full of names of code, loaded under an audit hook, cause no import, no process and no write."""
    names = ["os.system", "builtins.eval", "antigravity", "__reduce__", "_instantiator", "_class_path", "_target_"]
    tree: dict[str, Any] = {
        name: {"_target_": name, "_class_path": "antigravity.x", "args": ["true"]} for name in names
    }
    save_checkpoint(tree, tmp_path / "plain.ckpt")
    for index, tag in enumerate([*names, "object", "global", "reduce"]):
        forge(tmp_path / f"{index}.ckpt", header({"a": {"$": tag, "v": ["os", "system", "true"]}}))
    (tmp_path / "evil.ckpt").write_bytes(b"\x80\x04cantigravity\nx\n.")
    (tmp_path / "old.ckpt").write_bytes(b"cos\nsystem\n(S'touch /tmp/lt-owned'\ntR.")
    code = """
import pathlib, sys
from lt_core.checkpoint import load_checkpoint, save_checkpoint
folder = pathlib.Path(sys.argv[1])
load_checkpoint(folder / "plain.ckpt")  # what the package itself imports late is imported now
events = []
def watch(event, args):
    if event in ("import", "exec", "compile", "os.system", "subprocess.Popen", "socket.connect", "os.exec"):
        events.append((event, str(args)[:200]))
    if event == "open" and args[1] not in ("r", "rb", None):
        events.append((event, str(args)))
sys.addaudithook(watch)
refused = 0
for path in sorted(folder.glob("*.ckpt")):
    try:
        load_checkpoint(path)
    except Exception as error:
        refused += type(error).__name__ == "CheckpointError"
found = list(events)
print(refused, found)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    match = re.match(r"(\d+) \[(.*)\]", run.stdout)
    assert match is not None
    assert int(match[1]) == 12
    assert match[2] == ""
