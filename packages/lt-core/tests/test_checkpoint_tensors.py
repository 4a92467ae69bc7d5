"""Tensors keep their names, bits, strides and shared memory, and any safetensors reader sees them."""

from __future__ import annotations

import math
import pathlib
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lt_core.checkpoint import load_checkpoint, parameter_signature, peek, save_checkpoint


@pytest.fixture
def back(tmp_path: pathlib.Path) -> Any:
    def round_trip(tree: dict[str, Any], **options: Any) -> dict[str, Any]:
        save_checkpoint(tree, tmp_path / "x.ckpt")
        return load_checkpoint(tmp_path / "x.ckpt", **options)

    return round_trip


def shares(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def training_tree() -> dict[str, Any]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    state = {
        name: {"step": torch.tensor(3.0), "exp_avg": torch.randn_like(p), "exp_avg_sq": torch.rand_like(p)}
        for name, p in model.named_parameters()
    }
    group = {"lr": 1e-3, "betas": (0.9, 0.999), "foreach": None, "params": [n for n, _ in model.named_parameters()]}
    return {
        "epoch": 2,
        "global_step": 7,
        "progress": {"epoch": 2, "batch": 1, "step": 7, "samples": 50, "epoch_closed": False, "save_counter": 3},
        "state_dict": model.state_dict(),
        "optimizer_states": [{"state": state, "param_groups": [group]}],
        "callbacks": {"EMA": {"weights": {"w": torch.ones(2)}}},
    }


def test_tensors_have_plain_names_in_any_safetensors_reader(tmp_path: pathlib.Path) -> None:
    """The safetensors library reads the file, with weights and optimizer state by parameter name."""
    tree = training_tree()
    save_checkpoint(tree, tmp_path / "x.ckpt")
    found = load_file(tmp_path / "x.ckpt")
    for name, value in tree["state_dict"].items():
        assert torch.equal(found[f"model.{name}"], value)
    expected = tree["optimizer_states"][0]["state"]["0.weight"]["exp_avg"]
    assert torch.equal(found["optimizers.0.state.0.weight.exp_avg"], expected)
    assert torch.equal(found["callbacks.EMA.weights.w"], torch.ones(2))
    with safe_open(tmp_path / "x.ckpt", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_every_format_is_readable_by_the_safetensors_library(tmp_path: pathlib.Path) -> None:
    """Formats that safetensors has no name for are written as numbers that it has; odd strides as logical order."""
    w = torch.arange(12.0).reshape(3, 4)
    tree = {
        "c": torch.randn(2, 3, dtype=torch.complex64),
        "f8": torch.ones(3).to(torch.float8_e4m3fnuz),
        "t": w.t(),
        "odd": torch.ones(3, dtype=torch.uint8),
        "d": torch.ones(3, dtype=torch.float64),
        "scalar": torch.tensor(True),
        "empty": torch.empty(0, 2),
        "expanded": torch.ones(1, 1).expand(5, 3),
    }
    save_checkpoint(tree, tmp_path / "x.ckpt")
    found = load_file(tmp_path / "x.ckpt")
    assert torch.equal(torch.view_as_complex(found["c"]), tree["c"])
    assert torch.equal(found["f8"].view(torch.float8_e4m3fnuz).float(), torch.ones(3))
    assert torch.equal(found["t"], w.t())
    assert torch.equal(found["expanded"].expand(5, 3), tree["expanded"])
    assert found["scalar"].item() is True


def test_tied_weights_stay_tied(back: Any) -> None:
    """Two names of one tensor are written once and are one tensor again."""
    w = torch.randn(100, 10)
    found = back({"state_dict": {"embed.weight": w, "head.weight": w}})["state_dict"]
    assert shares(found["embed.weight"], found["head.weight"])
    found["embed.weight"].zero_()
    assert found["head.weight"].sum() == 0


def test_views_of_a_covering_tensor_stay_views(back: Any, tmp_path: pathlib.Path) -> None:
    """Rows, transposes and other-typed views of a tensor share its memory again; it is written once."""
    w = torch.randn(50, 40)
    tree = {"w": w, "row": w[3], "t": w.t(), "col": w[:, 1], "bits": w.view(torch.int32)}
    found = back(tree)
    for key, value in tree.items():
        assert shares(found[key], found["w"])
        assert torch.equal(found[key], value)
        assert found[key].stride() == value.stride()
    assert (tmp_path / "x.ckpt").stat().st_size < 2 * w.nbytes
    assert peek(tmp_path / "x.ckpt")["tensors"] == {"w": ("F32", (50, 40))}  # as any reader sees it


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (1, 2, 2)])
def test_transposed_tensors_keep_their_values(back: Any, shape: tuple[int, ...]) -> None:
    """A tensor whose elements do not lie in row-major order comes back with the same values and strides."""
    value = torch.arange(float(math.prod(shape))).view(shape).transpose(-1, -2)
    found = back({"x": value})["x"]
    assert torch.equal(found, value)
    assert found.stride() == value.stride()


def test_row_major_tensors_are_read_without_a_copy(tmp_path: pathlib.Path) -> None:
    """Only what lies otherwise is laid out anew; the stride of a size of 1 does not count."""

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    rows = torch.arange(6.0).view(2, 3)
    for tensor, copies in ((rows, 0), (rows[:1].as_strided((1, 3), (7, 1)), 0), (rows.t(), 1)):
        save_checkpoint({"x": tensor}, tmp_path / "x.ckpt")
        called: list[str] = []
        with Noting():
            found = load_checkpoint(tmp_path / "x.ckpt")["x"]
        assert torch.equal(found, tensor)
        assert called.count("aten.copy_.default") == copies, called


def test_overlapping_slices_share_memory_again(back: Any, tmp_path: pathlib.Path) -> None:
    """Slices that overlap without one covering the others are views of one block again."""
    base = torch.arange(1000.0)
    found = back({"a": base[100:160], "b": base[140:200], "c": base[150:152].view(torch.uint8)})
    assert torch.equal(found["a"], base[100:160])
    assert torch.equal(found["b"], base[140:200])
    found["a"][50] = -1
    assert found["b"][10] == -1
    assert torch.equal(found["c"].view(torch.float32), torch.tensor([-1.0, 151.0]))
    assert (tmp_path / "x.ckpt").stat().st_size < 4000


def test_small_views_of_a_large_block_make_a_small_file(back: Any, tmp_path: pathlib.Path) -> None:
    """Of a large block only what is used is written, as tensors of their own."""
    block, wide = torch.randn(1_000_000), torch.randn(1000, 1000)
    found = back({"a": block[5:10], "b": block[20:22], "far": wide[:, 3][::50]})
    assert torch.equal(found["a"], block[5:10])
    assert torch.equal(found["far"], wide[:, 3][::50])
    assert not shares(found["a"], found["b"])
    assert (tmp_path / "x.ckpt").stat().st_size < 10_000


def test_unfolded_windows_survive(back: Any) -> None:
    """A view whose own elements overlap comes back with its strides."""
    windows = torch.arange(10.0).unfold(0, 4, 1)
    found = back({"x": windows})["x"]
    assert torch.equal(found, windows)
    assert found.stride() == windows.stride()


def test_parameters_come_back_as_tensors(back: Any) -> None:
    """Parameters, buffers and tensors with a gradient come back as plain tensors."""
    found = back({"p": nn.Parameter(torch.ones(2)), "g": torch.ones(2, requires_grad=True) * 2})
    assert type(found["p"]) is Tensor
    assert not found["p"].requires_grad
    assert not found["g"].requires_grad


def test_conjugate_and_negative_views_survive(back: Any) -> None:
    """Lazy conjugation and negation are carried out."""
    z = torch.randn(3, dtype=torch.complex64)
    found = back({"c": z.conj(), "n": z.conj().imag})
    assert torch.equal(found["c"], z.conj())
    assert torch.equal(found["n"], z.conj().imag)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_tensors_survive(back: Any) -> None:
    """Sparse tensors of every layout come back in their layout."""
    x = torch.tensor([[0.0, 2.0, 0, 0], [3.0, 0, 0, 1]])
    tree = {"coo": x.to_sparse(), "csr": x.to_sparse_csr(), "csc": x.to_sparse_csc(), "bsr": x.to_sparse_bsr((2, 2))}
    found = back(tree)
    for key, value in tree.items():
        assert found[key].layout == value.layout
        assert torch.equal(found[key].to_dense(), x)
    assert found["coo"].is_coalesced()


def test_inference_tensors_are_saved(back: Any) -> None:
    """Tensors made in inference mode can be saved outside of it."""
    with torch.inference_mode():
        x = torch.ones(3)
    assert torch.equal(back({"x": x})["x"], torch.ones(3))


def test_nan_payloads_survive(back: Any) -> None:
    """Every bit of a NaN survives."""
    x = torch.tensor([0x7FC12345, -4194303], dtype=torch.int32).view(torch.float32)
    assert torch.equal(back({"x": x})["x"].view(torch.int32), x.view(torch.int32))


def test_colliding_names_do_not_mix(back: Any) -> None:
    """Keys that give the same dotted name stay apart."""
    tree: dict[str, Any] = {
        "a": {"b.c": torch.zeros(1)},
        "a.b": {"c": torch.ones(1)},
        "__metadata__": torch.full((1,), 2.0),
    }
    tree["storage.0"] = torch.full((1,), 3.0)
    tree["windows"] = torch.arange(10.0).unfold(0, 4, 1)
    tree["\ud800"] = torch.full((1,), 4.0)
    found = back(tree)
    assert found["a"]["b.c"].item() == 0
    assert found["a.b"]["c"].item() == 1
    assert found["__metadata__"].item() == 2
    assert found["storage.0"].item() == 3
    assert found["\ud800"].item() == 4
    assert torch.equal(found["windows"], tree["windows"])


@pytest.mark.parametrize(
    "location", [None, "cpu", torch.device("cpu"), {"cuda:0": "cpu"}, lambda storage, name: storage]
)
def test_map_location_in_every_form(back: Any, location: Any) -> None:
    """All forms that torch.load takes are understood."""
    assert back({"x": torch.ones(2)}, map_location=location)["x"].device.type == "cpu"


def test_map_location_moves_tensors_with_their_strides_and_sharing(back: Any) -> None:
    """Tensors arrive on another device with their strides and shared memory; numpy arrays stay here."""
    import numpy as np

    w = torch.randn(4, 3)
    found = back({"w": w, "t": w.t(), "cl": torch.randn(2, 3, 4, 4)[:, :, ::2], "n": np.ones(2)}, map_location="meta")
    assert found["w"].device.type == "meta"
    assert found["t"].stride() == (1, 3)
    assert found["cl"].shape == (2, 3, 2, 4)
    assert found["n"].sum() == 2


def test_peek_reads_the_header_alone(tmp_path: pathlib.Path) -> None:
    """The header gives progress, versions, keys, the parameters' signature and the tensors' shapes."""
    tree = training_tree()
    save_checkpoint(tree, tmp_path / "x.ckpt")
    header = peek(tmp_path / "x.ckpt")
    assert header["progress"] == tree["progress"]
    assert header["keys"] == list(tree)
    assert header["versions"]["torch"] == str(torch.__version__)
    assert header["parameters"] == parameter_signature(tree["state_dict"])
    assert header["tensors"]["model.0.weight"] == ("F32", (4, 3))
    assert header["size"] == (tmp_path / "x.ckpt").stat().st_size
    save_checkpoint({"epoch": 4, "state_dict": {}}, tmp_path / "y.ckpt")
    assert peek(tmp_path / "y.ckpt")["progress"] == {"epoch": 4, "step": 0}
    save_checkpoint({"global_step": 7}, tmp_path / "z.ckpt")
    assert peek(tmp_path / "z.ckpt")["progress"] == {"epoch": 0, "step": 7}


def test_signature_knows_models_apart() -> None:
    """The signature depends on names and shapes, not on values."""
    a, b = nn.Linear(2, 3), nn.Linear(2, 3)
    assert parameter_signature(a.state_dict()) == parameter_signature(b.state_dict())
    assert parameter_signature(a.state_dict()) != parameter_signature(nn.Linear(3, 3).state_dict())
    assert parameter_signature({"x": torch.ones(2)}) != parameter_signature({"y": torch.ones(2)})


def test_equal_trees_make_equal_bytes(tmp_path: pathlib.Path) -> None:
    """Saving the same tree twice gives the same file."""
    tree = training_tree() | {"set": {"b", "a", 1}}
    save_checkpoint(tree, tmp_path / "a.ckpt")
    save_checkpoint(tree | {"set": {1, "a", "b"}}, tmp_path / "b.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


@pytest.mark.slow
def test_saving_and_verifying_need_little_memory(tmp_path: pathlib.Path) -> None:
    """A save of 400 MB and its check add only a few megabytes to the process."""
    import subprocess
    import sys

    code = """
import resource, sys, torch
from lt_core.checkpoint import save_checkpoint, verify
tree = {"x": [torch.zeros(25_000_000) + i for i in range(4)]}
save_checkpoint({"x": torch.ones(3)}, sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_checkpoint(tree, sys.argv[1])
verify(sys.argv[1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "x.ckpt")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(out) < 20_000
