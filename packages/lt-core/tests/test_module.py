"""LightningModule: its names, its trainer, logging, manual optimization, copies."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lt_core.demos import BoringModel, ManualOptimBoringModel
from lt_core.loops.calls import manual_backward_of
from lt_core.module import LightningModule
from lt_interface import PlainPrecision, World
from lt_interface.errors import MisconfigurationException


def words(text: str) -> list[str]:
    return text.split()


HOOKS = words("""
forward training_step validation_step test_step predict_step configure_optimizers configure_callbacks configure_model
configure_sharded_model train_dataloader val_dataloader test_dataloader predict_dataloader backward optimizer_step
optimizer_zero_grad lr_scheduler_step configure_gradient_clipping clip_gradients setup teardown prepare_data
on_fit_start on_fit_end on_train_start on_train_end on_train_epoch_start on_train_epoch_end on_train_batch_start
on_train_batch_end on_validation_start on_validation_end on_validation_epoch_start on_validation_epoch_end
on_validation_batch_start on_validation_batch_end on_test_start on_test_end on_test_epoch_start on_test_epoch_end
on_test_batch_start on_test_batch_end on_predict_start on_predict_end on_predict_epoch_start on_predict_epoch_end
on_predict_batch_start on_predict_batch_end on_validation_model_eval on_validation_model_train on_test_model_eval
on_test_model_train on_predict_model_eval on_validation_model_zero_grad on_before_zero_grad on_before_backward
on_after_backward on_before_optimizer_step on_before_batch_transfer transfer_batch_to_device on_after_batch_transfer
on_save_checkpoint on_load_checkpoint
""")
METHODS = words("""
log log_dict print all_gather optimizers lr_schedulers manual_backward toggle_optimizer untoggle_optimizer
toggled_optimizer freeze unfreeze to_onnx to_torchscript save_hyperparameters remove_ignored_hparams
load_from_checkpoint load_state_dict
""")
PROPERTIES = words("""
trainer device dtype on_gpu device_mesh current_epoch global_step global_rank local_rank logger loggers hparams
hparams_initial automatic_optimization example_input_array strict_loading prepare_data_per_node
allow_zero_length_dataloader_with_multiple_devices CHECKPOINT_HYPER_PARAMS_KEY CHECKPOINT_HYPER_PARAMS_NAME
CHECKPOINT_HYPER_PARAMS_TYPE
""")


class Store:
    """Record of what is logged."""

    def __init__(self) -> None:
        self.added: list[tuple[Any, ...]] = []

    def add(self, *args: Any) -> None:
        self.added.append(args)


class FakeRun:
    """Stand-in for the parts of a running trainer that a module calls."""

    def __init__(self, optimizers: list[Any] | None = None, schedulers: list[Any] | None = None) -> None:
        self.optimizers = optimizers or []
        self.lightning_optimizers = [SimpleNamespace(optimizer=o, param_groups=o.param_groups) for o in self.optimizers]
        self.schedulers = [SimpleNamespace(scheduler=s) for s in schedulers or []]
        self.calls: list[Any] = []
        self.hooks = SimpleNamespace(fire=lambda name, *args: self.calls.append(name))
        self.engine = SimpleNamespace(backward=self.backward, owns=frozenset())
        self.precision = PlainPrecision()
        self.collectives = SimpleNamespace(barrier=self.calls.append, all_gather=self.gather)
        self.world, self.fits, self.feeds = World(), True, SimpleNamespace(made={})
        self.metrics = SimpleNamespace(train=SimpleNamespace(scope=0))

    @property
    def loop(self) -> Any:
        return SimpleNamespace(fit=SimpleNamespace(manual_backward=manual_backward_of(self)))

    def timed(self, function: Any, of: str) -> Any:
        return function

    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append("engine.backward")
        loss.backward(*args, **kwargs)

    def gather(self, tensor: Any, group: Any, sync_grads: bool) -> Any:
        self.calls.append((group, sync_grads))
        return torch.stack([tensor, tensor])

    def clip(self, optimizer: Any, value: Any, algorithm: Any) -> None:
        self.calls.append(("clip", value, algorithm))


class FakeTrainer:
    """Stand-in for a trainer."""

    current_epoch, global_step, global_rank, local_rank, logger, loggers = 3, 17, 1, 2, "L", ["L"]
    gradient_clip_val: Any = None
    gradient_clip_algorithm: Any = None
    lightning_module: Any = None

    def __init__(self, run: Any = None) -> None:
        self._run = run
        self.printed: list[Any] = []

    def print(self, *args: Any, **kwargs: Any) -> None:
        self.printed.append(args)


def attached(module: LightningModule, run: Any = None) -> FakeTrainer:
    """Attach a fake trainer and return it; the caller must hold it."""
    trainer = FakeTrainer(run)
    if run is not None:
        run.module = module
    module.trainer = trainer  # type: ignore[assignment]
    trainer.lightning_module = module
    return trainer


@pytest.mark.parametrize("name", HOOKS + METHODS + PROPERTIES)
def test_every_documented_name_exists(name: str) -> None:
    """Each hook, step, method and property that users know is there, with a docstring if it is a method."""
    value = inspect.getattr_static(LightningModule, name)
    if name in HOOKS and name != "forward":
        assert getattr(LightningModule, name).__doc__
    assert value is not inspect.Parameter.empty


def test_cooperative_init_with_sequential() -> None:
    """A class that is a LightningModule and an nn.Sequential takes layers and runs them."""

    class Net(LightningModule, nn.Sequential):
        pass

    class Other(nn.Sequential, LightningModule):
        pass

    for cls in (Net, Other):
        net = cls(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        assert net(torch.ones(5, 3)).shape == (5, 2)
        assert len(net) == 3
        assert not net.hparams


def test_attributes_need_no_init() -> None:
    """Reading and writing our attributes works before nn.Module's __init__ has run."""

    class Early(LightningModule):
        def __init__(self, width: int = 3) -> None:
            self.save_hyperparameters()
            assert self.automatic_optimization
            self.automatic_optimization = False
            super().__init__()
            self.layer = nn.Linear(width, 1)

    early = Early()
    assert early.hparams.width == 3
    assert early.automatic_optimization is False


def test_unattached_module_has_defaults() -> None:
    """Without trainer the counters are zero, loggers empty, and trainer raises a RuntimeError that says so."""
    model = BoringModel()
    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (0, 0, 0, 0)
    assert model.logger is None
    assert model.loggers == []
    assert model.device_mesh is None
    with pytest.raises(RuntimeError, match=r"BoringModel\.trainer: no trainer is attached"):
        _ = model.trainer


def test_attached_module_reads_its_trainer() -> None:
    """Counters, ranks and loggers are the trainer's."""
    model = BoringModel()
    trainer = attached(model)
    assert isinstance(model.trainer, FakeTrainer)
    assert (model.current_epoch, model.global_step, model.global_rank, model.local_rank) == (3, 17, 1, 2)
    assert (model.logger, model.loggers) == ("L", ["L"])
    model.print("hello")
    assert trainer.printed == [("hello",)]


def test_trainer_is_held_weakly_by_all_submodules() -> None:
    """The module does not keep its trainer alive; submodules that are LightningModules get it too."""
    model = BoringModel()
    model.child = BoringModel()
    trainer = attached(model)
    assert model.child.trainer is model.trainer
    assert isinstance(model.trainer, FakeTrainer)
    del trainer
    gc.collect()
    for module in (model, model.child):
        with pytest.raises(RuntimeError, match="no trainer is attached"):
            _ = module.trainer


def test_print_without_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    """An unattached module prints as print does."""
    BoringModel().print("a", 1, sep="-")
    assert capsys.readouterr().out == "a-1\n"


def test_missing_methods_say_how_to_write_them() -> None:
    """A step or loader that the user has not written raises our error, with its signature."""
    bare = LightningModule()
    for name in ("training_step", "validation_step", "test_step"):
        with pytest.raises(MisconfigurationException, match=rf"{name}: .* def {name}\(self, batch, batch_idx\)"):
            getattr(bare, name)(None, 0)
    for name in ("configure_optimizers", "train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader"):
        with pytest.raises(MisconfigurationException, match=f"def {name}"):
            getattr(bare, name)()


def test_default_steps() -> None:
    """predict_step runs forward; optimizer, scheduler and backward defaults do the plain thing."""
    model = BoringModel()
    x = torch.ones(1, 32)
    assert torch.equal(model.predict_step(x, 0), model(x))
    calls: list[Any] = []
    optimizer: Any = SimpleNamespace(
        step=lambda closure=None: calls.append(("step", closure)), zero_grad=lambda: calls.append("zero_grad")
    )
    closure: Any = object()
    model.optimizer_step(0, 0, optimizer, closure)
    model.optimizer_zero_grad(0, 0, optimizer)
    scheduler = SimpleNamespace(step=lambda *a: calls.append(a))
    model.lr_scheduler_step(scheduler, None)
    model.lr_scheduler_step(scheduler, 0.5)
    assert calls == [("step", closure), "zero_grad", (), (0.5,)]
    model.backward(model(x).sum())
    assert model.layer.weight.grad is not None
    assert model.on_before_batch_transfer(x, 0) is x
    assert model.on_after_batch_transfer(x, 0) is x
    assert torch.equal(model.transfer_batch_to_device({"a": [x]}, torch.device("cpu"), 0)["a"][0], x)


def test_model_eval_hooks_switch_modes() -> None:
    """The defaults of the mode hooks switch the whole module, and zero_grad frees gradients."""
    model = BoringModel()
    for stage in ("validation", "test"):
        getattr(model, f"on_{stage}_model_eval")()
        assert not model.layer.training
        getattr(model, f"on_{stage}_model_train")()
        assert model.layer.training
    model.on_predict_model_eval()
    assert not model.training
    model(torch.ones(1, 32)).sum().backward()
    model.on_validation_model_zero_grad()
    assert model.layer.weight.grad is None


# ---------------------------------------------------------------- logging


def test_log_passes_everything_on() -> None:
    """self.log hands its options to the store as one tuple, in their order, and the batch size apart."""
    model = BoringModel()
    model._metrics = store = Store()  # type: ignore[assignment]
    model.log("a", 1.0)
    model.log("b", 2.0, True, False, True, False, "sum", True, True, "g", False, 4, "m", True)
    assert store.added == [
        ("a", 1.0, (False, None, None, None, "mean", False, False, None, True, None, False), None),
        ("b", 2.0, (True, False, True, False, "sum", True, True, "g", False, "m", True), 4),
    ]


def test_log_is_two_python_calls() -> None:
    """One self.log costs two Python calls: itself and the store."""
    model = BoringModel()
    model._metrics = Store()  # type: ignore[assignment]
    seen: list[str] = []

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call":
            seen.append(frame.f_code.co_name)

    sys.setprofile(count)
    try:
        model.log("loss", 1.0, prog_bar=True)
    finally:
        sys.setprofile(None)
    assert seen == ["log", "add"]


def test_log_dict_logs_each_item() -> None:
    """log_dict logs each item with the same options."""
    model = BoringModel()
    model._metrics = store = Store()  # type: ignore[assignment]
    model.log_dict({"a": 1.0, "b": 2.0}, on_epoch=True, batch_size=3)
    options = (False, None, None, True, "mean", False, False, None, True, None, False)
    assert store.added == [("a", 1.0, options, 3), ("b", 2.0, options, 3)]


def test_log_without_trainer_warns() -> None:
    """Outside a run self.log and self.log_dict warn and do nothing."""
    with pytest.warns(UserWarning, match=r"self\.log\('loss'\): no trainer is running this module"):
        BoringModel().log("loss", 1.0)
    with pytest.warns(UserWarning, match="a, b"):
        BoringModel().log_dict({"a": 1.0, "b": 1.0})


def test_submodule_logs_into_the_running_module() -> None:
    """A LightningModule inside the running one logs to the same place."""
    model = BoringModel()
    model.child = BoringModel()
    trainer = attached(model)
    model._metrics = store = Store()  # type: ignore[assignment]
    model.child.log("inner", 1.0)
    model.child.log_dict({"other": 2.0})
    assert [args[0] for args in store.added] == ["inner", "other"]
    del trainer


# ---------------------------------------------------------------- manual optimization


def test_optimizers_and_schedulers() -> None:
    """One optimizer or scheduler comes alone, several as a list, none as None or an empty list."""
    model = ManualOptimBoringModel()
    first, second = (torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2))
    trainer = attached(model, FakeRun([first], ["s"]))
    assert model.optimizers(use_pl_optimizer=False) is first
    assert model.optimizers().optimizer is first
    assert model.lr_schedulers() == "s"
    trainer._run = FakeRun([first, second], ["s", "t"])
    assert [o.optimizer for o in model.optimizers()] == [first, second]
    assert model.lr_schedulers() == ["s", "t"]
    trainer._run = FakeRun()
    assert model.optimizers() == []
    assert model.lr_schedulers() is None


def test_run_methods_need_a_run() -> None:
    """Methods of a running trainer say so when none runs."""
    model = ManualOptimBoringModel()
    trainer = attached(model)
    for call in (model.optimizers, model.lr_schedulers, lambda: model.manual_backward(torch.ones(1))):
        with pytest.raises(RuntimeError, match="works only while"):
            call()
    del trainer


def test_manual_backward_runs_hooks_around_the_engine() -> None:
    """manual_backward fires both hooks around the engine's backward, with the caller's arguments."""
    model = ManualOptimBoringModel()
    trainer = attached(model, run := FakeRun())
    loss = model(torch.ones(1, 32)).sum()
    model.manual_backward(loss, retain_graph=True)
    model.manual_backward(loss)
    assert run.calls == ["on_before_backward", "engine.backward", "on_after_backward"] * 2
    del trainer


def test_manual_backward_calls_an_overridden_backward() -> None:
    """A module's own backward is used instead of the engine's."""

    class Own(ManualOptimBoringModel):
        def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
            self.seen = kwargs
            super().backward(loss, *args, **kwargs)

    model = Own()
    trainer = attached(model, run := FakeRun())
    model.manual_backward(model(torch.ones(1, 32)).sum(), retain_graph=True)
    assert model.seen == {"retain_graph": True}
    assert run.calls == ["on_before_backward", "on_after_backward"]
    assert model.layer.weight.grad is not None
    del trainer


def test_manual_backward_refuses_automatic_and_non_tensors() -> None:
    """manual_backward is refused under automatic optimization, and for what is no tensor."""
    model = BoringModel()
    trainer = attached(model, FakeRun())
    with pytest.raises(MisconfigurationException, match="automatic_optimization = False"):
        model.manual_backward(torch.ones(1))
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="must be a tensor"):
        model.manual_backward(1.0)  # type: ignore[arg-type]
    del trainer


class TwoParts(LightningModule):
    """Module with two optimizers that share a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = (nn.Linear(2, 2) for _ in range(3))
        self.b.bias.requires_grad_(False)

    def flags(self) -> dict[str, bool]:
        return {name: p.requires_grad for name, p in self.named_parameters()}


def two_parts() -> tuple[TwoParts, FakeTrainer, list[Any]]:
    model = TwoParts()
    optimizers = [
        torch.optim.SGD([*part.parameters(), *model.shared.parameters()], lr=0.1) for part in (model.a, model.b)
    ]
    trainer = attached(model, run := FakeRun(optimizers))
    return model, trainer, run.lightning_optimizers


def test_toggling_touches_only_the_others_parameters() -> None:
    """Toggling stops gradients of parameters that only other optimizers hold; untoggling restores each flag."""
    model, _trainer, (first, second) = two_parts()
    before = model.flags()
    model.toggle_optimizer(first)
    assert model.flags() == {name: not name.startswith("b.") for name in before}
    model.untoggle_optimizer(first)
    assert model.flags() == before
    with model.toggled_optimizer(second):
        assert not model.a.weight.requires_grad
        assert model.b.weight.requires_grad
        assert not model.b.bias.requires_grad
    assert model.flags() == before
    with pytest.raises(ZeroDivisionError), model.toggled_optimizer(second):
        raise ZeroDivisionError
    assert model.flags() == before


def test_toggling_twice_restores_the_first_state() -> None:
    """Toggling another optimizer without untoggling loses no original flag."""
    model, _trainer, (first, second) = two_parts()
    before = model.flags()
    model.toggle_optimizer(first)
    model.toggle_optimizer(second)
    assert not model.a.weight.requires_grad
    assert model.b.weight.requires_grad
    model.untoggle_optimizer(second)
    assert model.flags() == before


def test_clip_gradients_agrees_with_the_trainer() -> None:
    """Values come from the call or the Trainer; two different ones and unknown algorithms are refused."""
    model = BoringModel()
    optimizer: Any = object()
    trainer = attached(model, run := FakeRun())
    model.clip_gradients(optimizer, 0.5)
    model.configure_gradient_clipping(optimizer, 1.0, "VALUE")
    trainer.gradient_clip_val, trainer.gradient_clip_algorithm = 2.0, "value"
    model.clip_gradients(optimizer)
    assert run.calls == [("clip", 0.5, "norm"), ("clip", 1.0, "value"), ("clip", 2.0, "value")]
    with pytest.raises(MisconfigurationException, match=r"gradient_clip_val is specified in both .* 1\.0 .* 2\.0"):
        model.clip_gradients(optimizer, 1.0)
    with pytest.raises(MisconfigurationException, match="gradient_clip_algorithm is specified in both"):
        model.clip_gradients(optimizer, 2.0, "norm")
    trainer.gradient_clip_algorithm = None
    with pytest.raises(MisconfigurationException, match="one of norm, value"):
        model.clip_gradients(optimizer, 2.0, "max")


def test_all_gather_walks_collections() -> None:
    """all_gather gathers tensors and numbers at any depth, and keeps the rest."""
    model = BoringModel()
    trainer = attached(model, run := FakeRun())
    out = model.all_gather({"a": torch.tensor([1, 2]), "b": [3, (0.5, "text")]}, sync_grads=True)
    assert torch.equal(out["a"], torch.tensor([[1, 2], [1, 2]]))
    assert torch.equal(out["b"][0], torch.tensor([3, 3]))
    assert torch.equal(out["b"][1][0], torch.tensor([0.5, 0.5]))
    assert out["b"][1][1] == "text"
    assert set(run.calls) == {("data", True)}
    del trainer


# ---------------------------------------------------------------- the module as a whole


def test_freeze_and_unfreeze() -> None:
    """Freezing stops gradients and switches to evaluation; unfreezing undoes both; both return the module."""
    model = BoringModel()
    assert model.freeze() is model
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.unfreeze() is model
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


def test_device_and_dtype_follow_the_tensors() -> None:
    """Device and dtype are those of the parameters, however they got there."""
    model = BoringModel()
    assert (model.device, model.dtype, model.on_gpu) == (torch.device("cpu"), torch.float32, False)
    assert model.double().dtype == torch.float64
    assert model.to("meta").device == torch.device("meta")
    model = BoringModel()
    model.dtype = torch.float16
    assert model.dtype == torch.float16
    assert model.double().dtype == torch.float64


def test_device_of_a_module_without_tensors() -> None:
    """A module without parameters remembers where it was moved and to which type."""
    model = LightningModule()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    model.to("meta").half()
    assert (model.device, model.dtype) == (torch.device("meta"), torch.float16)


def busy() -> tuple[BoringModel, FakeTrainer]:
    """Return a module in the middle of a run, with a store and trainer that nobody can copy."""
    model = BoringModel()
    trainer = attached(model, io.TextIOWrapper(io.BytesIO()))
    model._metrics = io.TextIOWrapper(io.BytesIO())  # type: ignore[assignment]
    return model, trainer


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), copy.copy])
def test_copies_leave_the_run_behind(way: Any) -> None:
    """Pickles and copies of an attached module work, and are not attached."""
    model, _trainer = busy()
    twin = way(model)
    assert torch.equal(twin.layer.weight, model.layer.weight)
    assert twin._metrics is None
    with pytest.raises(RuntimeError, match="no trainer"):
        _ = twin.trainer
    assert isinstance(model.trainer, FakeTrainer)
    assert model._metrics is not None


def test_torch_save_and_state_dict_hold_only_weights() -> None:
    """The state dict of an attached module holds its weights and nothing of ours."""
    model, _trainer = busy()
    assert list(model.state_dict()) == ["layer.weight", "layer.bias"]
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    assert isinstance(torch.load(buffer, weights_only=False), BoringModel)


class Logs(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(self(batch))
        self.log("loss", loss, prog_bar=True)
        self.log_dict({"a": loss + 1, "index": batch_idx})
        return loss * 2


class Summing:
    """Sum what is logged, reading the numbers at once."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, name: str, value: Any, *options: Any) -> None:
        number = value.item() if isinstance(value, torch.Tensor) else value
        self.sums[name] = self.sums.get(name, 0) + number


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, at every graph break
def test_compiled_module_runs_attached_and_logging() -> None:
    """torch.compile of an attached module computes and logs the same, and traces no logging."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = Logs()
    model.child = BoringModel()
    trainer = attached(model)
    model._metrics = store = Summing()  # type: ignore[assignment]
    x = torch.ones(2, 32)
    expected = model.training_step(x, 0)
    for _ in range(2):
        model._keep_logging_out_of_graphs()
    compiled = torch.compile(model, backend="eager")
    assert torch.allclose(compiled(x), model(x))
    step = torch.compile(model.training_step, backend="eager")
    for i in range(2):
        assert torch.allclose(step(x, i), expected)
    loss = expected.item() / 2
    assert store.sums == pytest.approx({"loss": 3 * loss, "a": 3 * (loss + 1), "index": 1})
    assert not any("item()" in reason for reason in counters["graph_break"])
    twin = copy.deepcopy(model)
    assert not {"log", "log_dict", "print"} & set(vars(twin))
    del trainer


def test_an_error_in_a_trainers_property_is_not_taken_for_a_missing_trainer():
    """An error inside a trainer's property is raised, and not taken for a trainer that lacks it."""
    import weakref

    import pytest

    from lt_core import LightningModule

    class Broken:
        @property
        def global_step(self):
            raise AttributeError("inside")

    trainer, module = Broken(), LightningModule()
    module._trainer_ref = weakref.ref(trainer)
    with pytest.raises(AttributeError):
        _ = module.global_step
