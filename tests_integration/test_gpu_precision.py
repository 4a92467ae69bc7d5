"""On a card: training in each number format equals a hand-written loop, and a fused step is not waited for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from precision_cases import (
    FORMATS,
    FORMS,
    ByHand,
    by_trainer,
    equals_the_loop,
    network,
    resumes_to_the_bit,
    skips_as_torch,
)
from torch import nn

from lt_accel import MixedPrecision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", FORMATS)
def test_training_equals_a_hand_written_loop(name: str, form: str) -> None:
    """Weights, scale, counted steps and learning rate are those of the loop."""
    if form == "LBFGS" and name not in ("32-true", "64-true", "bf16-mixed"):
        pytest.skip("LBFGS needs the range of 32-bit floats and no loss scale")
    equals_the_loop(name, form, "cuda", 1e-6)


@pytest.mark.parametrize("form", ["plain", "accumulate", "norm", "value", "manual", "closure"])
@pytest.mark.parametrize("planted", [(2,), (0, 1, 6)], ids=str)
def test_overflow_skips_a_step_as_torch_does(form: str, planted: tuple[int, ...]) -> None:
    """A batch that overflows changes the scale and no weight; it is neither counted nor scheduled."""
    skips_as_torch(form, "cuda", planted)


@pytest.mark.parametrize("form", ["plain", "norm", "manual"])
def test_a_fused_step_that_overflowed_is_counted_back(form: str) -> None:
    """The scale is torch's at once; the count of steps is right with the step after."""
    hand = ByHand("16-mixed", form, "cuda", (2,), fused=True).train()
    trainer, _ = by_trainer("16-mixed", form, "cuda", (2,), fused=True)
    assert trainer.scaler is not None
    assert hand.scaler is not None
    assert trainer.scaler.state_dict() == hand.scaler.state_dict()
    assert trainer.global_step == hand.steps


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("clips", [False, True])
def test_a_fused_step_waits_for_nothing(clips: bool) -> None:
    """Scaling, unscaling, clipping and stepping do not make the CPU wait for the card."""
    net = network().cuda()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    precision = MixedPrecision("16-mixed", "cuda")
    precision.prepare([optimizer])
    x = torch.randn(4, 6, device="cuda")

    def step() -> None:
        optimizer.zero_grad()
        with precision.forward():
            loss = net(x).pow(2).mean()
        precision.scale(loss).backward()  # type: ignore[no-untyped-call]
        if clips:
            precision.unscale(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        assert precision.step(optimizer)

    step()
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(3):
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loss_scale_resumes_to_the_bit(tmp_path: Path) -> None:
    """A run that is saved in the middle goes on with the same scale, growth and weights."""
    resumes_to_the_bit("cuda", tmp_path)
