"""Check what one training batch does: losses, optimizers, their overridable hooks, and schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from logged import logged
from quiet import QUIET
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from lt_core import Callback, LightningModule, Trainer
from lt_interface.errors import MisconfigurationException

BATCHES = [torch.arange(1.0, 9.0).view(4, 2) / 8 + i / 4 for i in range(5)]


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 1, **flags})


class Net(LightningModule):
    """One linear layer; what configure_optimizers returns is given."""

    def __init__(self, configure: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 1)
        self.configure = configure or (lambda net: SGD(net.parameters(), lr=0.1))
        self.losses: list[float] = []

    def loss(self, batch: Tensor) -> Tensor:
        return self.layer(batch).square().mean()  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Any:
        return self.configure(self)


class Outputs(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.seen.append(outputs)


# ------------------------------------------------------------------ the loss


def test_the_loss_is_given_to_on_train_batch_end_detached() -> None:
    """A returned tensor arrives as outputs["loss"], without its graph."""
    outputs, net = Outputs(), Net()
    trainer(callbacks=[outputs]).fit(net, BATCHES)
    assert [o["loss"].item() for o in outputs.seen] == net.losses
    assert not any(o["loss"].requires_grad for o in outputs.seen)


def test_a_dict_keeps_its_other_keys() -> None:
    """Further keys of a returned dict are handed on, tensors at any depth detached."""

    class Dicts(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.loss(batch)
            return {"loss": loss, "twice": loss * 2, "more": {"deep": [loss * 3]}, "pair": (loss * 4, 1), "name": "x"}

    outputs = Outputs()
    trainer(callbacks=[outputs]).fit(Dicts(), BATCHES[:1])
    (seen,) = outputs.seen
    assert seen["name"] == "x"
    assert not seen["twice"].requires_grad
    assert not seen["more"]["deep"][0].requires_grad
    assert not seen["pair"][0].requires_grad
    assert seen["twice"].item() == pytest.approx(2 * seen["loss"].item())


@pytest.mark.parametrize("own_step", [False, True])
def test_accumulated_losses_are_divided_by_their_windows_true_length(own_step: bool) -> None:
    """outputs["loss"] is what backward was given: a half in a window of two, the whole in a short one of one."""

    class Own(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    outputs, net = Outputs(), Own() if own_step else Net()
    run = trainer(callbacks=[outputs], accumulate_grad_batches=2)
    run.fit(net, BATCHES)
    shares = [o["loss"].item() / loss for o, loss in zip(outputs.seen, net.losses, strict=True)]
    assert shares == pytest.approx([0.5, 0.5, 0.5, 0.5, 1.0])
    assert run.global_step == 3


@pytest.mark.parametrize("own_step", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_returning_none_skips_the_backward_pass_and_nothing_else(own_step: bool, accumulate: int) -> None:
    """Gradients are cleared, the optimizer steps without any, outputs are empty, and one warning is given."""

    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            self.losses.append(-1.0)
            assert all(p.grad is None for p in self.parameters())

        def on_before_backward(self, loss: Any) -> None:
            raise AssertionError("there is no backward pass")

    class Own(Skips):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    outputs, net = Outputs(), Own() if own_step else Skips()
    before = net.layer.weight.clone()
    net.layer.weight.grad = torch.ones(1, 2)
    run = trainer(callbacks=[outputs], accumulate_grad_batches=accumulate)
    with pytest.warns(UserWarning, match="returned None") as given:
        run.fit(net, BATCHES)
    assert len(given) == 1
    assert outputs.seen == [{}] * 5
    assert run.global_step == len(net.losses) == (5 if accumulate == 1 else 3)
    assert torch.equal(before, net.layer.weight)


# ------------------------------------------------------------------ manual optimization


class TwoByHand(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        first, second = self.optimizers()
        self.steps(first, second, batch)

    def steps(self, first: Any, second: Any, batch: Any) -> None:
        for optimizer, layer in ((first, self.layer), (second, self.other)):
            optimizer.zero_grad()
            self.manual_backward(layer(batch).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return SGD(self.layer.parameters(), lr=0.1), SGD(self.other.parameters(), lr=0.2)


def test_global_step_counts_batches_with_two_optimizers() -> None:
    """Two optimizers that both step in a batch count once; both really step."""
    net, run = TwoByHand(), trainer(max_epochs=2)
    before = [p.clone() for p in net.parameters()]
    run.fit(net, BATCHES)
    assert run.global_step == 10
    assert not any(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


def test_a_manual_batch_without_a_step_does_not_count() -> None:
    """A batch in which no optimizer stepped leaves global_step as it is, and max_steps counts the others."""

    class Every2(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            self.losses.append(0.0)
            if len(self.losses) % 2 == 0:
                super().steps(first, second, batch)

    net, run = Every2(), trainer(max_epochs=-1, max_steps=4)
    run.fit(net, BATCHES)
    assert (run.global_step, len(net.losses)) == (4, 8)


def test_toggling_lets_only_one_optimizers_parameters_require_gradients() -> None:
    """Inside toggled_optimizer the other's parameters are frozen; afterwards each flag is as it was."""

    class Toggles(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            self.layer.bias.requires_grad_(False)
            with self.toggled_optimizer(first):
                assert [p.requires_grad for p in self.parameters()] == [True, False, False, False]
            self.toggle_optimizer(second)
            assert [p.requires_grad for p in self.parameters()] == [False, False, True, True]
            self.untoggle_optimizer(second)
            assert [p.requires_grad for p in self.parameters()] == [True, False, True, True]
            with first.toggle_model():
                assert not self.other.weight.requires_grad
            assert self.other.weight.requires_grad

    trainer().fit(Toggles(), BATCHES[:1])


def test_manual_outputs_are_what_the_step_returned() -> None:
    """Tensor, dict and None are taken under manual optimization; the loss is not divided nor needed."""

    class Returns(TwoByHand):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            super().training_step(batch, batch_idx)
            return [torch.tensor(1.0, requires_grad=True), {"a": torch.tensor(2.0, requires_grad=True)}, None][
                batch_idx
            ]

    outputs = Outputs()
    trainer(callbacks=[outputs]).fit(Returns(), BATCHES[:3])
    assert outputs.seen == [{"loss": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}, {}]
    assert not outputs.seen[1]["a"].requires_grad


def test_the_users_optimizers_look_like_what_they_wrap() -> None:
    """self.optimizers() gives objects that are instances of the wrapped class; the raw ones are there on request."""

    class Looks(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            assert isinstance(first, SGD)
            assert first.param_groups is self.optimizers(use_pl_optimizer=False)[0].param_groups
            first.param_groups[0]["lr"] = 0.5
            assert first.optimizer.param_groups[0]["lr"] == 0.5  # type: ignore[attr-defined]

    trainer().fit(Looks(), BATCHES[:1])


def test_the_users_optimizers_show_what_is_set_on_what_they_wrap() -> None:
    """An attribute set on the wrapped optimizer later shows in the wrapper, and wrappers of one kind share a class."""
    seen: list[Any] = []

    class Later(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            first.optimizer.phase = "warm"
            scheduler = StepLR(first, step_size=1)
            first.step()
            scheduler.step()
            seen.append((first.phase, hasattr(first, "absent"), first.defaults["lr"], type(first) is type(second)))

    trainer().fit(Later(), BATCHES[:1])
    assert seen == [("warm", False, 0.1, True)]


def test_schedulers_are_the_users_under_manual_optimization() -> None:
    """No scheduler steps by itself; self.lr_schedulers() hands it out."""

    class Schedules(TwoByHand):
        def configure_optimizers(self) -> Any:
            optimizers = super().configure_optimizers()
            return list(optimizers), [StepLR(optimizers[0], 1, 0.5)]

        def on_train_epoch_end(self) -> None:
            scheduler: Any = self.lr_schedulers()
            assert scheduler.get_last_lr() == [0.1 * 0.5**self.current_epoch]
            scheduler.step()

    trainer(max_epochs=3).fit(Schedules(), BATCHES[:2])


def test_clipping_by_hand() -> None:
    """self.clip_gradients clips one optimizer's gradients under manual optimization."""

    class Clips(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            self.manual_backward((self.layer(batch) + self.other(batch)).square().sum() * 100)
            self.clip_gradients(first, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            assert norm(self.layer) == pytest.approx(0.5, rel=1e-4)
            assert norm(self.other) > 1
            self.clip_gradients(second, gradient_clip_val=0.25, gradient_clip_algorithm="value")
            assert max(p.grad.abs().max().item() for p in self.other.parameters() if p.grad is not None) <= 0.25

    trainer().fit(Clips(), BATCHES[:1])


def test_optimizers_stepped_past_the_trainer_are_warned_of() -> None:
    """Raw optimizers train but count no step: with max_steps one warning says so and what to step instead."""

    class Raw(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            self.manual_backward(self.layer(batch).square().sum())
            first.optimizer.step()

    run, module = trainer(max_epochs=3, max_steps=5), Raw()
    before = module.layer.weight.detach().clone()
    with pytest.warns(
        UserWarning, match=r"Raw\.training_step: no optimizer of self\.optimizers\(\) was stepped"
    ) as seen:
        run.fit(module, BATCHES[:2])
    assert len(seen) == 1
    assert run.global_step == 0
    assert not torch.equal(module.layer.weight, before)


def test_clipping_by_hand_takes_the_runs_optimizers() -> None:
    """clip_gradients with an optimizer that the fit does not know is one clear error."""

    class Clips(TwoByHand):
        def steps(self, first: Any, second: Any, batch: Any) -> None:
            self.clip_gradients(SGD(self.parameters(), lr=0.1), gradient_clip_val=0.5, gradient_clip_algorithm="norm")

    with pytest.raises(
        MisconfigurationException, match=r"Clips\.clip_gradients: .*Got SGD\. Pass one of self\.optimizers"
    ):
        trainer().fit(Clips(), BATCHES[:1])


def norm(module: nn.Module) -> float:
    return torch.stack([p.grad.norm() for p in module.parameters() if p.grad is not None]).norm().item()  # type: ignore[no-any-return]


# ------------------------------------------------------------------ overridable parts of a step


def test_an_own_optimizer_step_gets_epoch_batch_optimizer_and_closure() -> None:
    """optimizer_step may change the optimizer before it calls the closure, as warm-ups do."""
    seen: list[Any] = []

    class Warm(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            seen.append((epoch, batch_idx, isinstance(optimizer, SGD)))
            optimizer.param_groups[0]["lr"] = 0.0
            optimizer.step(closure=optimizer_closure)

    net = Warm()
    before, run = net.layer.weight.clone(), trainer(max_epochs=2)
    run.fit(net, BATCHES[:2])
    assert seen == [(0, 0, True), (0, 1, True), (1, 0, True), (1, 1, True)]
    assert torch.equal(before, net.layer.weight)
    assert run.global_step == len(net.losses) == 4


def test_an_own_optimizer_step_that_forgets_the_closure_is_warned_of() -> None:
    """Without the closure there is no training_step: one warning says so, and the batch does not count."""

    class Forgets(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            if batch_idx % 2 == 0:
                optimizer.step(closure=optimizer_closure)

    net, run = Forgets(), trainer()
    with pytest.warns(UserWarning, match="the closure was not called, so batch 1") as given:
        run.fit(net, BATCHES)
    assert (len(given), len(net.losses), run.global_step) == (1, 3, 3)


def test_a_closure_may_be_run_without_a_step() -> None:
    """An optimizer_step that runs the closure and does not step trains nothing and is not counted."""

    class Skips(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()

    net, run = Skips(), trainer()
    run.fit(net, BATCHES)
    assert (len(net.losses), run.global_step) == (5, 0)


def test_own_backward_zero_grad_and_clipping_are_used() -> None:
    """backward, optimizer_zero_grad and configure_gradient_clipping are called with their documented arguments."""
    seen: list[Any] = []

    class Own(Net):
        def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
            seen.append("backward")
            (loss * 2).backward()  # type: ignore[no-untyped-call]

        def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
            seen.append(("zero", epoch, batch_idx))
            optimizer.zero_grad(set_to_none=False)

        def configure_gradient_clipping(
            self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
        ) -> None:
            seen.append((gradient_clip_val, gradient_clip_algorithm))
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            assert norm(self) == pytest.approx(0.01, rel=1e-3)

    trainer(gradient_clip_val=0.01).fit(Own(), BATCHES[:2])
    assert seen == [("zero", 0, 0), "backward", (0.01, "norm"), ("zero", 0, 1), "backward", (0.01, "norm")]


@pytest.mark.parametrize(("algorithm", "bound"), [("norm", 0.01), ("value", 0.002)])
def test_gradients_are_clipped_after_on_before_optimizer_step(algorithm: str, bound: float) -> None:
    """The hook sees whole gradients, the optimizer clipped ones."""
    whole: list[float] = []

    class Watching(SGD):
        def step(self) -> Any:  # type: ignore[override]
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            largest = torch.stack([g.norm() if algorithm == "norm" else g.abs().max() for g in gradients])
            value = largest.norm() if algorithm == "norm" else largest.max()
            assert value.item() <= bound * 1.001
            return super().step()

    class Hooked(Net):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            whole.append(norm(self))

    flags = {"gradient_clip_val": bound, "gradient_clip_algorithm": algorithm}
    trainer(**flags).fit(Hooked(lambda net: Watching(net.parameters(), lr=0.1)), BATCHES)
    assert len(whole) == 5
    assert min(whole) > 2 * bound


def test_lbfgs_evaluates_the_whole_window_and_logs_each_batch_once() -> None:
    """Each further call of the closure runs all batches of the window again; only the first logs."""
    order: list[int] = []

    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            order.append(batch_idx)
            loss = self.loss(batch)
            self.log("loss", loss, on_step=False, on_epoch=True)
            self.losses.append(loss.item())
            return loss

    net = Logs(lambda net: torch.optim.LBFGS(net.parameters(), lr=0.01, max_iter=3))
    run = trainer(accumulate_grad_batches=2, limit_train_batches=4)
    run.fit(net, BATCHES)
    assert order[:6] == [0, 1, 0, 1, 0, 1]
    assert order == [0, 1] * (order.index(2) // 2) + [2, 3] * ((len(order) - order.index(2)) // 2)
    firsts = [net.losses[order.index(i)] for i in range(4)]
    assert run.callback_metrics["loss"].item() == pytest.approx(sum(firsts) / 4, rel=1e-6)
    assert run.global_step == 2


class Unsized:
    def __iter__(self) -> Iterator[Tensor]:
        return iter(BATCHES)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", ["straight", "own_step", "lbfgs"])
def test_a_short_window_counts_by_its_true_length_whatever_the_loader_says(kind: str, clip: float | None) -> None:
    """A loader of unknown length gives the weights of one of known length, also in the window that ends early."""

    class Own(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure)

    def train(batches: Any) -> tuple[Tensor, int]:
        if kind == "lbfgs":
            net = Net(lambda net: torch.optim.LBFGS(net.parameters(), lr=0.5, line_search_fn="strong_wolfe"))
        else:
            net = (Own if kind == "own_step" else Net)()
        run = trainer(accumulate_grad_batches=3, gradient_clip_val=clip, max_epochs=2)
        run.fit(net, batches)
        return torch.cat([p.detach().flatten() for p in net.parameters()]), run.global_step

    (sized, steps), (unsized, steps_of_unsized) = train(BATCHES), train(Unsized())
    assert steps == steps_of_unsized == 4
    torch.testing.assert_close(sized, unsized, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("loader", [BATCHES, Unsized()])
def test_every_step_is_logged_that_is_due(loader: Any) -> None:
    """The step of a short last window is in the history too, whatever the loader says of its length."""

    class Logs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("batch", float(batch_idx))
            return super().training_step(batch, batch_idx)

    run = trainer(accumulate_grad_batches=3, log_every_n_steps=1, max_epochs=2)
    run.fit(Logs(), loader)
    assert logged(run)["batch"] == [2.0, 4.0, 2.0, 4.0]
    assert logged(run).steps["batch"] == [0, 1, 2, 3]


@pytest.mark.parametrize("loader", [BATCHES, Unsized()])
def test_the_closure_returns_the_mean_loss_of_its_window(loader: Any) -> None:
    """What an optimizer such as LBFGS compares is the loss that the gradients belong to."""
    means: list[float] = []

    class Own(Net):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            means.append(optimizer_closure().item())

    net = Own()
    trainer(accumulate_grad_batches=3).fit(net, loader)
    assert means == pytest.approx([sum(net.losses[:3]) / 3, sum(net.losses[3:]) / 2])


# ------------------------------------------------------------------ forms of configure_optimizers


def sgd(net: Any) -> SGD:
    return SGD(net.parameters(), lr=0.1)


def with_scheduler(make: Callable[[SGD, StepLR], Any]) -> Callable[[Any], Any]:
    def configure(net: Any) -> Any:
        optimizer = sgd(net)
        return make(optimizer, StepLR(optimizer, 1, 0.5))

    return configure


FORMS: dict[str, Callable[[Any], Any]] = {
    "optimizer": sgd,
    "list": lambda net: [sgd(net)],
    "tuple": lambda net: (sgd(net),),
    "dict": lambda net: {"optimizer": sgd(net)},
    "list of dicts": lambda net: [{"optimizer": sgd(net)}],
    "two lists": with_scheduler(lambda o, s: ([o], [s])),
    "two lists with dict": with_scheduler(lambda o, s: ([o], [{"scheduler": s}])),
    "list of two lists": with_scheduler(lambda o, s: [[o], [s]]),
    "two lists, one empty": lambda net: ([sgd(net)], []),
    "dict with scheduler": with_scheduler(lambda o, s: {"optimizer": o, "lr_scheduler": s}),
    "dict with dict": with_scheduler(lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "name": "x"}}),
    "dict with None": lambda net: {"optimizer": sgd(net), "lr_scheduler": None},
    "tuple of dicts": with_scheduler(lambda o, s: ({"optimizer": o, "lr_scheduler": s},)),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_configure_optimizers(form: str) -> None:
    """Every documented form gives its optimizer, and the scheduler, where there is one, steps each epoch."""
    net, run = Net(FORMS[form]), trainer(max_epochs=2)
    run.fit(net, BATCHES[:1])
    (optimizer,) = run.optimizers
    assert isinstance(optimizer, SGD)
    has_scheduler = (
        "scheduler" in form or ("two lists" in form and "empty" not in form) or form.endswith(("dict", "of dicts"))
    )
    has_scheduler = has_scheduler and form not in ("dict", "list of dicts")
    assert len(run.lr_scheduler_configs) == has_scheduler
    assert optimizer.param_groups[0]["lr"] == (0.025 if has_scheduler else 0.1)


def test_no_optimizer_at_all() -> None:
    """None from configure_optimizers is allowed with a warning; training runs, and nothing is stepped."""
    net, run = Net(lambda net: None), trainer()
    before = net.layer.weight.clone()
    with pytest.warns(UserWarning, match="no optimizer"):
        run.fit(net, BATCHES)
    assert len(net.losses) == 5
    assert torch.equal(before, net.layer.weight)


def scheduled(config: dict[str, Any], make: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    def configure(net: Any) -> Any:
        optimizer = sgd(net)
        scheduler = make(optimizer) if make else StepLR(optimizer, 1, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **config}}

    return configure


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (lambda net: 3, "unknown form of return value. Got 3. Return an optimizer, a list"),
        (lambda net: [sgd(net), 3], "unknown form"),
        (lambda net: {"optimizer": 3}, "every optimizer must be a torch.optim.Optimizer. Got 3"),
        (lambda net: {"lr_scheduler": 3}, "must have the key \"optimizer\". Got ['lr_scheduler']"),
        (lambda net: [sgd(net), sgd(net)], "automatic optimization takes one optimizer, here are 2"),
        (lambda net: {"optimizer": sgd(net), "lr_scheduler": {}}, 'must have the key "scheduler"'),
        (scheduled({"interval": "batch"}), 'interval must be "step" or "epoch". Got \'batch\''),
        (scheduled({"frequency": 0}), "frequency must be a whole number of at least 1. Got 0"),
        (scheduled({}, ReduceLROnPlateau), 'ReduceLROnPlateau needs the metric that it watches. Add "monitor"'),
        (lambda net: ([sgd(net)], [StepLR(sgd(net), 1)]), "a scheduler's optimizer must be among those returned"),
        (lambda net: ([sgd(net)], [object()]), "does not know how to step a scheduler that is none of torch's"),
    ],
)
def test_forms_that_mean_nothing_are_refused(configure: Callable[[Any], Any], message: str) -> None:
    """What configure_optimizers returned wrongly is named, with its rule, before the first batch."""
    net = Net(configure)
    with pytest.raises(MisconfigurationException) as caught:
        trainer().fit(net, BATCHES)
    assert str(caught.value).startswith("LightningModule.configure_optimizers: ")
    assert message in str(caught.value)
    assert not net.losses


@pytest.mark.parametrize(
    ("configure", "message"),
    [
        (scheduled({"intervall": "step"}), r"the lr_scheduler keys \['intervall'\] are not known"),
        (lambda net: {"optimizer": sgd(net), "scheduler": 3}, r"the keys \['scheduler'\] are not known"),
        (scheduled({}, lambda o: OneCycleLR(o, 1.0, total_steps=50)), "OneCycleLR is stepped once an epoch"),
        (lambda net: SGD([net.layer.weight], lr=0.1), r"no optimizer holds these trainable parameters: layer\.bias"),
    ],
)
def test_what_is_seldom_meant_is_warned_of(configure: Callable[[Any], Any], message: str) -> None:
    """Unknown keys, a batch scheduler stepped by epochs, and parameters that nothing trains give a warning."""
    with pytest.warns(UserWarning, match=message):
        trainer().fit(Net(configure), BATCHES)


def test_frozen_parameters_need_no_optimizer() -> None:
    """Parameters that do not require gradients may be left out without a warning."""
    net = Net(lambda net: SGD([net.layer.weight], lr=0.1))
    net.layer.bias.requires_grad_(False)
    trainer().fit(net, BATCHES)


# ------------------------------------------------------------------ schedulers


class Rates(Callback):
    """Callback that notes the learning rate that each step used."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append(optimizer.param_groups[0]["lr"])


@pytest.mark.parametrize(
    ("config", "accumulate", "expected"),
    [
        ({"interval": "step"}, 1, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"interval": "step", "frequency": 2}, 1, [1, 1, 2, 2, 3, 3, 4, 4]),
        ({"interval": "step"}, 2, [1, 2, 3, 4]),
        ({"interval": "epoch"}, 1, [1, 1, 2, 2, 3, 3, 4, 4]),
        ({"interval": "epoch", "frequency": 3}, 1, [1, 1, 1, 1, 1, 1, 2, 2]),
    ],
)
def test_schedulers_step_at_their_interval_and_frequency(
    config: dict[str, Any], accumulate: int, expected: list[int]
) -> None:
    """After every n-th batch that ends a window, or every n-th epoch."""
    rates = Rates()
    configure = scheduled(config, lambda o: LambdaLR(o, lambda n: n + 1))
    run = trainer(max_epochs=4, callbacks=[rates], accumulate_grad_batches=accumulate)
    run.fit(Net(configure), BATCHES[:2])
    assert rates.seen == pytest.approx([0.1 * x for x in expected])


@pytest.mark.parametrize("loader", [BATCHES, Unsized()])
def test_epoch_schedulers_step_before_the_last_validation_where_the_length_is_known(loader: Any) -> None:
    """In on_train_epoch_end the new rate is there, however the loader's length is known."""
    seen = []

    class Looks(Net):
        def on_train_epoch_end(self) -> None:
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    trainer(max_epochs=2).fit(Looks(scheduled({})), loader)
    assert seen == [0.05, 0.025]


class Watched(Net):
    """Module that logs a metric that never gets better."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("flat", 1.0)
        return super().training_step(batch, batch_idx)


def plateau(optimizer: Any) -> ReduceLROnPlateau:
    return ReduceLROnPlateau(optimizer, factor=0.5, patience=0)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"interval": "epoch"}, [0.1, 0.1, 0.1, 0.1, 0.05, 0.05]),
        ({"interval": "step"}, [0.1, 0.1, 0.05, 0.025, 0.0125, 0.00625]),
        ({"interval": "step", "frequency": 2}, [0.1, 0.1, 0.1, 0.1, 0.05, 0.05]),
    ],
)
def test_plateau_schedulers_get_the_metric_that_they_monitor(config: dict[str, Any], expected: list[float]) -> None:
    """The metric's newest value is given after each n-th interval."""
    rates = Rates()
    net = Watched(scheduled({"monitor": "flat", **config}, plateau))
    trainer(max_epochs=3, callbacks=[rates]).fit(net, BATCHES[:2])
    assert rates.seen == pytest.approx(expected)


def test_the_monitor_may_stand_beside_the_optimizer() -> None:
    """The older form with "monitor" next to "lr_scheduler" means the same."""

    def configure(net: Any) -> Any:
        optimizer = sgd(net)
        return {"optimizer": optimizer, "lr_scheduler": plateau(optimizer), "monitor": "flat"}

    run = trainer(max_epochs=3)
    run.fit(Watched(configure), BATCHES[:2])
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.025)


def test_a_monitored_metric_that_is_missing() -> None:
    """A strict scheduler raises and lists what is logged; one that is not strict warns and waits."""
    config = {"monitor": "val_los"}
    with pytest.raises(
        MisconfigurationException, match=r"lr_scheduler ReduceLROnPlateau, monitor 'val_los'.*Logged are: flat"
    ):
        trainer().fit(Watched(scheduled(config, plateau)), BATCHES)
    with pytest.warns(UserWarning, match="'val_los'"):
        trainer().fit(Watched(scheduled({**config, "strict": False}, plateau)), BATCHES)


def test_own_lr_scheduler_step_serves_any_object() -> None:
    """lr_scheduler_step gets the scheduler and, for those that watch one, the metric."""
    seen: list[Any] = []

    class Odd:
        pass

    class Own(Watched):
        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            seen.append((type(scheduler), None if metric is None else float(metric)))

    trainer(max_epochs=2).fit(Own(lambda net: ([sgd(net)], [Odd()])), BATCHES[:1])
    trainer().fit(Own(scheduled({"monitor": "flat"}, plateau)), BATCHES[:1])
    assert seen == [(Odd, None), (Odd, None), (ReduceLROnPlateau, 1.0)]


def test_reduce_on_plateau_may_be_claimed_for_other_schedulers() -> None:
    """A scheduler of one's own that takes a metric says so with "reduce_on_plateau"."""
    seen: list[float] = []

    class Own:
        def step(self, metric: Any) -> None:
            seen.append(float(metric))

    config = {"scheduler": Own(), "reduce_on_plateau": True, "monitor": "flat"}
    trainer(max_epochs=2).fit(Watched(lambda net: ([sgd(net)], [config])), BATCHES[:1])
    assert seen == [1.0, 1.0]
