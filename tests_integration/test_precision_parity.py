"""Training in each number format equals a loop written by hand in that format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from precision_cases import FORMATS, FORMS, equals_the_loop, resumes_to_the_bit, skips_as_torch

# Kernels that are fused round less often than one after another.
ROUNDING = {"32-true": 1e-5, "64-true": 1e-12, "16-true": 1e-2, "bf16-true": 5e-2, "16-mixed": 1e-3, "bf16-mixed": 1e-2}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FORMATS)
def test_training_equals_a_hand_written_loop(name: str, form: str) -> None:
    """Weights, scale, counted steps and learning rate are those of the loop, bit for bit."""
    if form == "LBFGS" and name not in ("32-true", "64-true", "bf16-mixed"):
        pytest.skip("LBFGS needs the range of 32-bit floats and no loss scale")
    equals_the_loop(name, form, "cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_generated_kernels_train_alike(name: str) -> None:
    """Under torch.compile with its own kernels each format trains as the hand-written loop, up to its rounding."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch's CPU kernels need a C++ compiler")
    equals_the_loop(name, "compiled", "cpu", ROUNDING[name], "inductor")


@pytest.mark.parametrize("fused", [False, True], ids=["loops", "fused"])
@pytest.mark.parametrize("form", ["plain", "accumulate", "norm", "value", "manual", "closure"])
@pytest.mark.parametrize("planted", [(2,), (0, 1, 6)], ids=str)
def test_overflow_skips_a_step_as_torch_does(form: str, planted: tuple[int, ...], fused: bool) -> None:
    """A batch that overflows changes the scale and no weight; it is neither counted nor scheduled."""
    skips_as_torch(form, "cpu", planted, fused)


@pytest.mark.parametrize("planted", [(2,), (5,)], ids=str)
def test_a_loss_scale_resumes_to_the_bit(planted: tuple[int, ...], tmp_path: Path) -> None:
    """A run that is saved in the middle goes on with the same scale, growth and weights."""
    resumes_to_the_bit("cpu", tmp_path, planted)
