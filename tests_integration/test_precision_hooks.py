"""What users see of a number format: gradients of true size, values that are logged, batches without a loss, errors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from precision_cases import CLIP, FLAGS, FORMATS, Net, by_trainer, loader, network, new_scaler, precision_of
from torch import Tensor, nn

from lt_accel import MixedPrecision, TransformerEnginePrecision
from lt_accel.strategies.ddp import DDPStrategy
from lt_core import LightningModule, Trainer
from lt_core.builtin.precision import BFloat16Precision, HalfPrecision
from lt_core.plugins.precision import Precision
from lt_interface import ConfigError, MisconfigurationException
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceLauncher


def trainer_of(name: str = "16-mixed", **flags: Any) -> Trainer:
    return Trainer(**{**FLAGS, "accelerator": "cpu", "max_epochs": 1, "precision": precision_of(name, "cpu"), **flags})


def norms(net: nn.Module) -> float:
    return float(torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm())


class Watching(Net):
    """The module that notes the gradients' norm in each hook that looks at them."""

    def __init__(self, form: str = "plain", fused: bool = False) -> None:
        super().__init__(form, fused)
        self.seen: dict[str, list[float]] = {"before": [], "clip": []}

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.seen["before"].append(norms(self.net))


class OwnClipping(Watching):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.seen["clip"].append(norms(self.net))
        self.clip_gradients(optimizer, gradient_clip_val=CLIP, gradient_clip_algorithm="norm")
        self.seen["clip"].append(norms(self.net))


@pytest.mark.parametrize("fused", [False, True], ids=["loops", "fused"])
@pytest.mark.parametrize("form", ["plain", "accumulate", "manual", "closure"])
def test_hooks_see_gradients_of_true_size(form: str, fused: bool) -> None:
    """on_before_optimizer_step sees what it sees in bf16-mixed, whatever the scale and the form of the step."""
    norm = {}
    for name in ("16-mixed", "bf16-mixed"):
        base: Any = Watching
        if form == "closure":

            class Stepping(Watching):
                def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
                    optimizer.step(closure=closure)

            base = Stepping
        net = base("manual" if form == "manual" else "plain", fused)
        trainer_of(name, accumulate_grad_batches=2 if form == "accumulate" else 1).fit(net, loader())
        norm[name] = net.seen["before"]
    assert norm["16-mixed"] == pytest.approx(norm["bf16-mixed"], rel=0.1)


def test_an_overridden_clipping_sees_and_leaves_true_sizes() -> None:
    """configure_gradient_clipping gets unscaled gradients, and what it clips is what the optimizer takes."""
    net = OwnClipping()
    trainer_of().fit(net, loader())
    before, after = net.seen["clip"][::2], net.seen["clip"][1::2]
    assert before == net.seen["before"]
    assert max(before) > CLIP
    assert after == pytest.approx([min(b, CLIP) for b in before], rel=1e-4)


def test_clip_gradients_by_hand_unscales_once() -> None:
    """Under manual optimization clip_gradients clips true sizes, and the step does not unscale them again."""

    class Clipping(Watching):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(self.net(batch[0]), batch[1]))
            self.clip_gradients(optimizer, gradient_clip_val=CLIP)
            self.seen["clip"].append(norms(self.net))
            optimizer.step()
            self.lr_schedulers().step()

    net = Clipping("manual")
    trainer_of().fit(net, loader())
    assert net.seen["clip"] == net.seen["before"]
    assert max(net.seen["clip"]) <= CLIP * 1.001
    _, same = by_trainer("16-mixed", "norm", "cpu", max_epochs=1)
    for ours, theirs in zip(net.net.parameters(), same.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_overridden_backward_gets_the_scaled_loss() -> None:
    """What it runs backward on is the loss times the scale, and training is as without the override."""
    losses = []

    class Own(Net):
        def backward(self, loss: Tensor) -> None:
            losses.append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]

    _, net = by_trainer("16-mixed", "plain", "cpu", module=Own)
    _, plain = by_trainer("16-mixed", "plain", "cpu")
    assert losses[0] > 2.0**8
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("form", ["plain", "closure"])
def test_a_batch_without_a_loss_is_no_overflow(form: str, accumulate: int) -> None:
    """A training_step that returns None for some batches, the first one too, trains on with the same scale."""

    class Skipping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx in (0, 3) else super().training_step(batch, batch_idx)

    class SkippingOwnStep(Skipping):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any = None) -> None:
            optimizer.step(closure=closure)

    net = (SkippingOwnStep if form == "closure" else Skipping)()
    trainer = trainer_of(accumulate_grad_batches=accumulate)
    with pytest.warns(UserWarning, match="returned None"):
        trainer.fit(net, loader())
    assert trainer.scaler.get_scale() >= 2.0**10
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_several_optimizers_step_with_one_scale() -> None:
    """Two toggled optimizers in a batch share the scale, which changes once a batch; one overflow skips one step."""
    scales: list[float] = []

    class Pair(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.nets = nn.ModuleList([network(), network()])

        def training_step(self, batch: Any, batch_idx: int) -> None:
            for k, optimizer in enumerate(self.optimizers()):
                with optimizer.toggle_model():
                    factor = torch.inf if (batch_idx, k) == (2, 1) else 1.0
                    optimizer.zero_grad()
                    self.manual_backward(nn.functional.mse_loss(self.nets[k](batch[0]), batch[1]) * factor)
                    optimizer.step()

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            scales.append(self.trainer.scaler.get_scale())

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(net.parameters(), lr=0.05) for net in self.nets]

    net = Pair()
    trainer = trainer_of()
    trainer.fit(net, loader())
    assert scales == [2.0**10, 2.0**10, 2.0**9, 2.0**9, 2.0**9, 2.0**10, 2.0**10]
    assert trainer.global_step == 7
    assert any(not torch.equal(a, b) for a, b in zip(*(n.parameters() for n in net.nets), strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_logged_values_are_of_32_bits(name: str) -> None:
    """What self.log was given in any format is a mean in 32 bits, or 64, not one that rounds to 16."""

    class Logging(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.log("value", torch.tensor(1000.0 + 8 * batch_idx, dtype=torch.bfloat16), on_step=False, on_epoch=True)
            self.log("small", torch.tensor(0.1, dtype=torch.float16), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    trainer = trainer_of(name)
    trainer.fit(Logging(), loader())
    value = trainer.callback_metrics["value"]
    assert value.dtype in (torch.float32, torch.float64)
    assert float(value) == pytest.approx(1024, abs=1e-3)
    assert float(trainer.callback_metrics["small"]) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_evaluation_computes_in_the_format(name: str, inference_mode: bool) -> None:
    """validate, test and predict run in the format, and a later fit gets its gradients."""
    seen: list[torch.dtype] = []

    class Evaluating(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.net(batch[0]).dtype)

        def test_step(self, batch: Any, batch_idx: int) -> None:
            seen.append(self.net(batch[0]).dtype)

        def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
            out: Tensor = self.net(batch[0])
            return out

    net = Evaluating()
    trainer = trainer_of(name, inference_mode=inference_mode)
    trainer.validate(net, loader(), verbose=False)
    trainer.test(net, loader(), verbose=False)
    predictions: Any = trainer.predict(net, loader())
    wanted = {"64": torch.float64, "32": torch.float32, "16": torch.float16, "bf16": torch.bfloat16}
    assert {*seen, *(p.dtype for p in predictions)} == {wanted[name.partition("-")[0]]}
    before = [p.detach().clone() for p in net.parameters()]
    trainer.fit(net, loader(), loader())
    assert all(not torch.equal(a, b.to(a.dtype)) for a, b in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("name", FORMATS)
def test_modules_are_made_in_the_format(name: str) -> None:
    """configure_model and trainer.init_module make parameters in the format; no default is left changed."""
    dtypes = {"64-true": torch.float64, "16-true": torch.float16, "bf16-true": torch.bfloat16}
    wanted = dtypes.get(name, torch.float32)
    trainer = trainer_of(name)
    with trainer.init_module():
        assert nn.Linear(2, 2).weight.dtype is wanted
    assert torch.get_default_dtype() is torch.float32

    class Late(Net):
        def configure_model(self) -> None:
            assert nn.Linear(2, 2).weight.dtype is wanted

    trainer.fit(Late(), loader())
    assert torch.get_default_dtype() is torch.float32


def test_float16_on_a_processor_is_refused_in_one_line() -> None:
    """Without a scaler for it, an object for float16 is refused before anything starts; the line offers bf16-mixed."""
    trainer = Trainer(**{**FLAGS, "accelerator": "cpu", "precision": MixedPrecision("16-mixed")})
    with pytest.raises(MisconfigurationException, match='Write precision="bf16-mixed"') as error:
        trainer.fit(Net(), loader())
    assert "\n" not in str(error.value)


def test_lbfgs_with_a_loss_scale_is_refused() -> None:
    """The error names the optimizer and what to write, before the first batch."""
    with pytest.raises(MisconfigurationException, match=r"LBFGS.*bf16-mixed"):
        by_trainer("16-mixed", "LBFGS", "cpu")


def test_a_precision_is_given_once() -> None:
    """A MixedPrecision as precision= and as a plugin is one error."""
    mixed = MixedPrecision("16-mixed", "cpu", new_scaler("cpu"))
    with pytest.raises(MisconfigurationException, match="given twice"):
        Trainer(precision=mixed, plugins=[mixed], accelerator="cpu")
    assert Trainer(**{**FLAGS, "accelerator": "cpu", "plugins": [mixed]}).scaler is mixed.scaler


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("bf16-mixd", 'Did you mean "bf16-mixed"'),
        ("16mixed", 'Did you mean "16-mixed"'),
        ("bfloat16", 'Write "bf16-mixed" or "bf16-true"'),
        ("nf4", 'Write plugins=BitsandbytesPrecision\\("nf4"\\)'),
    ],
)
def test_unknown_names_get_the_nearest(name: str, fix: str) -> None:
    """A misspelt precision, or the word for a format, is answered with what to write."""
    with pytest.raises(MisconfigurationException, match=fix):
        Trainer(precision=name, accelerator="cpu")


class Renamed:
    """Overrides under PyTorch Lightning's names, each of which goes on to its base."""

    def convert_module(self, module: nn.Module) -> nn.Module:
        self.called.add("module")
        return super().convert_module(module)  # type: ignore[misc]

    def convert_input(self, data: Any) -> Any:
        self.called.add("input")
        return super().convert_input(data)  # type: ignore[misc]

    def forward_context(self) -> Any:
        self.called.add("forward")
        return super().forward_context()  # type: ignore[misc]

    def tensor_init_context(self) -> Any:
        self.called.add("init")
        return super().tensor_init_context()  # type: ignore[misc]

    @property
    def called(self) -> set[str]:
        found: set[str] = self.__dict__.setdefault("_called", set())
        return found


@pytest.mark.parametrize(
    ("base", "name"), [(Precision, "32-true"), (HalfPrecision, "bf16-true"), (MixedPrecision, "bf16-mixed")]
)
def test_overrides_may_have_the_names_of_lightning(base: Any, name: str) -> None:
    """A precision whose overrides have Lightning's names trains as its base does, and each of them is called."""
    kind = type("Own", (Renamed, base), {"name": "own"} if base is Precision else {})
    precision, nets = kind(*[] if base is Precision else [name]), []
    for given in (precision, name):
        torch.manual_seed(0)
        nets.append(Net())
        trainer = trainer_of(precision=given)
        with trainer.init_module():
            pass
        trainer.fit(nets[-1], loader())
    assert precision.called == {"module", "input", "forward", "init"}
    assert precision.precision == ("own" if base is Precision else name)
    assert all(torch.equal(a, b) for a, b in zip(*(net.parameters() for net in nets), strict=True))


def test_hooks_that_are_not_called_are_refused() -> None:
    """A hook of Lightning's precisions that nothing calls is an error where it is defined, with what to override."""
    with pytest.raises(MisconfigurationException, match=r"^Own\.optimizer_step: .*Override step\(optimizer, closure"):
        type("Own", (MixedPrecision,), {"optimizer_step": lambda *args: None})


def test_formats_that_a_device_lacks_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """64-true on Apple's GPU is refused in one line, by its accelerator; a wrong name of a 16-bit format too."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"^Trainer\(precision='64-true'\): MPS has no numbers of 64 bits\. Got"):
        Trainer(**FLAGS, accelerator="mps", precision="64-true").fit(Net(), loader())
    assert HalfPrecision("bf16-true").dtype is BFloat16Precision().dtype is torch.bfloat16
    with pytest.raises(MisconfigurationException, match="bf16-true"):
        HalfPrecision("16")


def test_a_scale_goes_through_a_whole_checkpoint(tmp_path: Path) -> None:
    """A file of a run with a scale resumes in another format, and the other way round."""
    trainer, _ = by_trainer("16-mixed", "plain", "cpu", max_epochs=1)
    path = tmp_path / "scaled.ckpt"
    trainer.save_checkpoint(path)
    plain = trainer_of("bf16-mixed", max_epochs=2)
    plain.fit(Net(), loader(), ckpt_path=path)
    assert plain.current_epoch == 2
    plain.save_checkpoint(path)
    again = trainer_of(max_epochs=3)
    again.fit(Net(), loader(), ckpt_path=path)
    assert again.current_epoch == 3


@pytest.mark.parametrize("form", ["plain", "manual"])
def test_an_overflow_on_one_rank_skips_the_step_on_all(form: str) -> None:
    """Ranks of which one sees an infinite input keep the same weights, scale and counters."""

    def rank(number: int) -> Any:
        there = {"devices": 2, "strategy": "ddp", "launcher": ReferenceLauncher()}
        trainer, net = by_trainer("16-mixed", form, "cpu", (2,), max_epochs=1, **there)
        assert trainer.scaler is not None
        return trainer.global_step, trainer.scaler.state_dict(), [p.tolist() for p in net.parameters()]

    first, second = run_ranks(rank, 2, timeout=120)
    assert first == second
    assert first[0] == 3  # of the 4 global batches
    assert first[1]["scale"] == 2.0**9


class PairWithBuffers(LightningModule):
    """Two networks with an optimizer each, and a running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.nets = nn.ModuleList([network(), network()])
        self.norm = nn.BatchNorm1d(6)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for net, optimizer in zip(self.nets, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(net(self.norm(batch[0])), batch[1]))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.05) for net in self.nets]


def test_the_scale_of_several_optimizers_changes_once_a_batch_on_ranks() -> None:
    """What a strategy does after a batch, such as sending buffers, does not take the place of the precision's part."""

    def rank(number: int) -> Any:
        strategy = DDPStrategy()
        trainer = trainer_of(devices=2, strategy=strategy, launcher=ReferenceLauncher())
        trainer.fit(PairWithBuffers(), loader())
        return trainer.scaler.state_dict()

    first, second = run_ranks(rank, 2, timeout=120)
    assert first == second
    assert (first["scale"], first["_growth_tracker"]) == (2.0**11, 1)  # 4 global batches, growing after 3


@pytest.mark.parametrize("module", ["lt_core.plugins", "lt_core.plugins.precision"])
def test_users_imports_find_the_precisions(module: str) -> None:
    """Precisions of this package are found under the paths that programs import them from."""
    found = import_module(module)
    assert found.MixedPrecision is MixedPrecision
    assert found.TransformerEnginePrecision is TransformerEnginePrecision
    with pytest.raises(ImportError, match="cannot import name 'Mixed'"):
        exec(f"from {module} import Mixed")
