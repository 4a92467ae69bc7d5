"""Conformance suite of strategies."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lt_interface.accelerator import Accelerator
from lt_interface.engine import Engine
from lt_interface.errors import CheckpointError, MisconfigurationException, RankFailedError
from lt_interface.plan import Plan
from lt_interface.precision import Precision
from lt_interface.registry import strategies
from lt_interface.strategy import Collectives, Strategy
from lt_interface.testing.ranks import run_ranks
from lt_interface.testing.reference import ReferenceAccelerator, ReferenceEngine, ReferencePrecision
from lt_interface.testing.suite import Conformance
from lt_interface.testing.training import Job
from lt_interface.world import World

__all__ = ["StrategyConformance"]

# Five batches: with two or three a window the epoch's last window is short.
JOBS = {
    "plain": Job(),
    "clip": Job(clip=0.05),
    "short-window": Job(accumulate=2),
    "clipped-window": Job(accumulate=3, clip=0.05),
    "manual": Job(manual=True),
    "own-backward": Job(accumulate=2, backward=True),
    "manual-own-backward": Job(manual=True, backward=True),
}
OWNABLE = {"accumulate", "backward", "clip", "zero_grad", "unscale", "schedule"}


def _forward_backward(engine: Engine, batch: Any, index: int, first: bool = True, last: bool = True) -> Any:
    """Return the loss of one batch, run up to the optimizer as the core does.

    Args:
        engine: The engine under test.
        batch: One of the suite's batches.
        index: Its index.
        first: Whether it opens a window.
        last: Whether it closes one.
    """
    context = engine.window(last) if engine.window is not None else None
    with nullcontext() if context is None else context:
        if engine.before_forward is not None:
            engine.before_forward()
        loss = engine.call["training_step"](engine.place(batch) if engine.place is not None else batch, index)
        if first and "zero_grad" not in engine.owns:
            engine.optimizers[0].zero_grad()
        engine.backward(loss)
    return loss


def _assert_same(found: dict[str, Any], job: Job) -> None:
    """Compare what the core trained with what it trains in one process and one go, to 1e-6.

    Args:
        found: The weights, as lists.
        job: The job.

    Raises:
        AssertionError: If a name or a value differs.
    """
    import torch

    expected = job.train()
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(torch.tensor(found[name]), torch.tensor(value), rtol=0.0, atol=1e-6)


class StrategyConformance(Conformance, suite=True):
    """Tests of a strategy in one process, as a run of one rank, and on forked ranks in the core's own loop.

    What needs several ranks is skipped for a strategy that refuses a plan of them, and where lt-core is not installed.

    Attributes:
        tolerance: How far weights may lie from those of a hand-written loop; 0 asks for the same bits.
        size: How many forked ranks train together.
        timeout: Seconds after which ranks that are not done fail a test.

    Example:
        ::

            class TestRing(StrategyConformance):
                plugin = "ring"
                tolerance = 1e-6
    """

    registry = strategies
    tolerance: ClassVar[float] = 0.0
    size: ClassVar[int] = 2
    timeout: ClassVar[float] = 120.0

    def make_accelerator(self) -> Accelerator:
        """Return the accelerator to run on; the CPU unless overridden."""
        return ReferenceAccelerator()

    def make_precision(self) -> Precision:
        """Return the precision to compute in; 32 bits unless overridden."""
        return ReferencePrecision()

    def default_engine(self) -> Callable[..., Engine]:
        """Return the builder of the plain engine that the strategy may wrap."""
        return ReferenceEngine

    def plan(self) -> Plan:
        """Return the plan of the run."""
        return Plan(seed=1)

    def network(self) -> Any:
        """Return a small module with the steps of training and validation."""
        import torch
        from torch import nn
        from torch.nn import functional

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Linear(4, 8)
                self.second = nn.Linear(8, 1)

            def forward(self, x: torch.Tensor) -> Any:
                return self.second(torch.tanh(self.first(x)))

            def training_step(self, batch: Any, batch_idx: int) -> Any:
                return functional.mse_loss(self(batch[0]), batch[1])

            def validation_step(self, batch: Any, batch_idx: int) -> Any:
                return self.training_step(batch, batch_idx)

        torch.manual_seed(5)
        return Net()

    def batches(self, count: int) -> list[Any]:
        """Return batches, the same at every call.

        Args:
            count: How many; each is a pair of tensors (16, 4) and (16, 1).
        """
        import torch

        generator = torch.Generator().manual_seed(9)
        return [(x, x.sum(1, keepdim=True)) for x in torch.randn(count, 16, 4, generator=generator)]

    @pytest.fixture
    def strategy(self) -> Iterator[Strategy]:
        """Return a strategy that was set up, and tear it down after the test."""
        made: Strategy = self.make()
        accelerator = self.make_accelerator()
        made.setup(None, accelerator, accelerator.parse_devices(1), self.plan())
        yield made
        made.leave()

    def engine(self, strategy: Strategy, optimizer: str = "Adam", **options: Any) -> tuple[Any, Engine]:
        """Return a sharded module and the engine of one optimizer over it.

        Args:
            strategy: The strategy under test, set up.
            optimizer: Name of the optimizer's class in ``torch.optim``.
            **options: Its options; the learning rate is 0.05 unless given.
        """
        import torch

        precision = self.make_precision()
        module = strategy.shard(self.network(), precision, False)
        made = getattr(torch.optim, optimizer)(module.parameters(), **{"lr": 0.05, **options})
        return module, strategy.engine(module, [made], [], precision, self.plan(), self.default_engine())

    def run(self, engine: Engine, batches: list[Any], clip: float | None = None) -> list[float]:
        """Train with one step a batch, each as the core runs it.

        Args:
            engine: The engine under test.
            batches: What `batches` returned.
            clip: The largest norm of the gradients, or None.

        Returns:
            The loss of each step.
        """
        losses = []
        for index, batch in enumerate(batches):
            loss = _forward_backward(engine, batch, index)
            if clip is not None and "clip" not in engine.owns:
                engine.unscale(0)
                engine.clip(0, clip, "norm")
            assert engine.update(0, True) is True
            if engine.boundary is not None:
                engine.boundary()
            losses.append(float(loss.detach()))
        return losses

    def weights(self, engine: Engine) -> dict[str, Any]:
        """Return a copy of an engine's weights on the CPU, by name.

        Args:
            engine: The engine under test.
        """
        return {name: value.detach().cpu().clone() for name, value in engine.model.state_dict().items()}

    def by_hand(self, batches: list[Any], clip: float | None = None) -> dict[str, Any]:
        """Return the weights after a hand-written loop, by name.

        Args:
            batches: What `batches` returned.
            clip: The largest norm of the gradients, or None.
        """
        import torch

        net = self.network()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
        for index, batch in enumerate(batches):
            loss = net.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
        return {name: value.detach().clone() for name, value in net.state_dict().items()}

    def assert_close(self, found: dict[str, Any], expected: dict[str, Any]) -> None:
        """Compare weights by name, bit for bit where the tolerance is 0.

        Args:
            found: The engine's weights.
            expected: Those of the hand-written loop.

        Raises:
            AssertionError: If a name or a value differs.
        """
        import torch

        assert list(found) == list(expected)
        for name, value in expected.items():
            if self.tolerance == 0:
                assert torch.equal(found[name], value), f"{name}: other bits"
            else:
                torch.testing.assert_close(found[name], value, rtol=self.tolerance, atol=self.tolerance)

    def test_fills_the_protocol(self, strategy: Strategy) -> None:
        """It has every method and attribute, and the name it is registered under."""
        assert isinstance(strategy, Strategy)
        assert isinstance(strategy.collectives, Collectives)
        assert strategy.default_launcher is None or isinstance(strategy.default_launcher, str)
        assert isinstance(strategy.collective_forward, bool)
        assert isinstance(strategy.collective_weights, bool)
        assert isinstance(strategy.one_process_per_node, bool)
        assert isinstance(strategy.checkpoint_io(), str)
        assert isinstance(strategy.name, str)
        if self.plugin:
            assert strategy.name == self.plugin

    def test_accepts_a_plain_plan(self) -> None:
        """A plan of one device has no problem, and asking needs no setup."""
        assert list(self.make().problems(self.plan())) == []

    def test_setup_says_who_we_are(self) -> None:
        """Setup returns a world in which this rank has its place, and sets the device."""
        import torch

        made = self.make()
        accelerator = self.make_accelerator()
        world = made.setup(None, accelerator, accelerator.parse_devices(1), self.plan())
        assert isinstance(world, World)
        assert 0 <= world.rank < world.size
        assert 0 <= world.local_rank < world.local_size <= world.size
        assert 0 <= world.data_rank < world.data_size <= world.size
        assert isinstance(made.device, torch.device)
        made.leave()

    @pytest.mark.parametrize("op", ["mean", "sum", "min", "max"])
    def test_collectives_of_one_rank(self, strategy: Strategy, op: str) -> None:
        """With one rank every exchange gives back what it got, and leaves it as it was."""
        import torch

        value = torch.tensor([1.0, -2.0], device=strategy.device)
        exchange = strategy.collectives
        assert torch.equal(exchange.reduce(value, op), value)
        assert torch.equal(exchange.all_gather(value).reshape(-1), value)
        assert value.tolist() == [1.0, -2.0]
        assert torch.equal(exchange.reduce(value, op, "all"), value)
        assert exchange.broadcast_object({"a": (1, None)}) == {"a": (1, None)}
        assert exchange.gather_object({"a": (1, None)}) == [{"a": (1, None)}]
        assert exchange.any(True) is True
        assert exchange.any(False) is False
        assert exchange.agree(5) == 5
        exchange.barrier("here")

    def test_gathered_gradients_flow(self, strategy: Strategy) -> None:
        """A gathered tensor passes its gradient on where asked to."""
        import torch

        value = torch.ones(2, device=strategy.device, requires_grad=True)
        strategy.collectives.all_gather(value * 3, sync_grads=True).sum().backward()  # type: ignore[no-untyped-call]
        assert value.grad is not None
        assert value.grad.tolist() == [3.0, 3.0]

    @pytest.mark.parametrize("empty", [None, False, True])
    def test_init_context_builds_modules(self, strategy: Strategy, empty: bool | None) -> None:
        """A module constructed inside keeps its names and shapes; the context leaves no trace."""
        import torch

        before = torch.empty(0).device
        with strategy.init_context(empty):
            net = self.network()
        assert {n: p.shape for n, p in net.named_parameters()} == {
            n: p.shape for n, p in self.network().named_parameters()
        }
        assert torch.empty(0).device == before
        assert (
            all(torch.equal(a, b) for a, b in zip(self.network().parameters(), net.parameters(), strict=True)) or empty
        )

    def test_shard_gives_final_parameters(self, strategy: Strategy) -> None:
        """After shard the parameters lie on the device under their own names, ready for an optimizer."""
        net = self.network()
        module = strategy.shard(net, self.make_precision(), False)
        assert module is net, "a module is sharded in place"
        assert [name for name, _ in module.named_parameters()] == [
            name for name, _ in self.network().named_parameters()
        ]
        assert {p.device.type for p in module.parameters()} == {strategy.device.type}
        assert all(p.requires_grad for p in module.parameters())

    @pytest.mark.parametrize("loads_weights", [False, True])
    def test_shard_materialises(self, strategy: Strategy, loads_weights: bool) -> None:
        """A module built on the meta device gets memory; without weights to load it is initialised."""
        import torch

        with torch.device("meta"):
            net = self.network()
        module: Any = strategy.shard(net, self.make_precision(), loads_weights)
        assert not any(p.is_meta for p in module.parameters())
        if not loads_weights:
            assert all(bool(p.isfinite().all()) for p in module.parameters())
            assert float(module.first.weight.detach().abs().sum()) > 0

    def test_engine_fills_the_protocol(self, strategy: Strategy) -> None:
        """The engine has every method and attribute, and the steps that the module has, no others."""
        _, engine = self.engine(strategy)
        assert isinstance(engine, Engine)
        assert set(engine.call) == {"training_step", "validation_step"}
        assert engine.owns <= OWNABLE
        assert len(engine.optimizers) == 1
        assert list(self.weights(engine)) == list(self.network().state_dict())

    @pytest.mark.parametrize("clip", [None, 0.05], ids=["unclipped", "clipped"])
    def test_trains_as_by_hand(self, strategy: Strategy, clip: float | None) -> None:
        """Six steps give the weights of a hand-written loop."""
        _, engine = self.engine(strategy)
        self.run(engine, self.batches(6), clip)
        self.assert_close(self.weights(engine), self.by_hand(self.batches(6), clip))

    def test_gradients_add_up(self, strategy: Strategy) -> None:
        """Two backward passes before a step give the sum of both gradients."""
        import torch

        _, engine = self.engine(strategy, "SGD")
        before = self.weights(engine)
        first, second = self.batches(2)
        _forward_backward(engine, first, 0, last=False)
        _forward_backward(engine, second, 1, first=False)
        engine.update(0, True)
        net = self.network()
        sum(net.training_step(b, 0) for b in self.batches(2)).backward()
        for name, parameter in net.named_parameters():
            moved = before[name] - self.weights(engine)[name]
            torch.testing.assert_close(moved, 0.05 * parameter.grad, rtol=1e-4, atol=1e-6)

    def test_clip_returns_the_norm(self, strategy: Strategy) -> None:
        """Clipping by norm returns the norm before; by value it bounds each entry."""
        module, engine = self.engine(strategy)
        if "clip" in engine.owns:
            pytest.skip("this engine clips by itself")
        _forward_backward(engine, self.batches(1)[0], 0)
        norm = engine.clip(0, 0.01, "norm")
        assert norm is not None
        again = engine.clip(0, 1e9, "norm")
        assert again is not None
        assert float(norm) > 0.01
        assert float(again) == pytest.approx(0.01, rel=1e-3)
        engine.clip(0, 1e-4, "value")
        assert max(float(p.grad.abs().max()) for p in module.parameters()) <= 1e-4 * (1 + 1e-5)

    def test_step_takes_a_closure(self, strategy: Strategy) -> None:
        """LBFGS calls its closure several times in one step."""
        _, engine = self.engine(strategy, "LBFGS", max_iter=4)
        batch = self.batches(1)[0]
        placed = engine.place(batch) if engine.place is not None else batch
        losses: list[float] = []

        def closure() -> Any:
            engine.optimizers[0].zero_grad()
            loss = engine.call["training_step"](placed, 0)
            engine.backward(loss)
            losses.append(float(loss.detach()))
            return loss

        assert engine.update(0, True, closure) is True
        assert len(losses) > 1
        assert losses[-1] < losses[0]

    def test_weights_go_by_name(self, strategy: Strategy) -> None:
        """Weights are saved and loaded under the user's names, before an optimizer exists too."""
        precision = self.make_precision()
        module = strategy.shard(self.network(), precision, False)
        saved = copy.deepcopy(strategy.weights(module).state_dict())
        self.assert_close({k: v.detach().cpu() for k, v in saved.items()}, self.network().state_dict())
        doubled = {name: value * 2 for name, value in saved.items()}
        strategy.weights(module).load_state_dict(doubled, strict=True)
        self.assert_close(strategy.weights(module).state_dict(), doubled)

    def test_weights_say_what_does_not_fit(self, strategy: Strategy) -> None:
        """Weights that lack a name, or have one too many, are a RuntimeError that quotes it, unless not strict."""
        module = strategy.shard(self.network(), self.make_precision(), False)
        saved = copy.deepcopy(strategy.weights(module).state_dict())
        lacking = {name: value * 2 for name, value in saved.items() if name != "first.bias"}
        for wrong, name in ((lacking, "first.bias"), ({**saved, "third.bias": saved["first.bias"]}, "third.bias")):
            with pytest.raises(RuntimeError, match=f'"{name}"'):
                strategy.weights(module).load_state_dict(wrong, strict=True)
        strategy.weights(module).load_state_dict(saved, strict=True)
        strategy.weights(module).load_state_dict(lacking, strict=False)
        self.assert_close(strategy.weights(module).state_dict(), {**saved, **lacking})

    def test_release_leaves_plain_tensors(self, strategy: Strategy) -> None:
        """After release parameters and optimizer states are plain tensors on the CPU, with the trained values."""
        import torch

        module, engine = self.engine(strategy)
        self.run(engine, self.batches(3))
        strategy.release(module, engine.optimizers)
        engine.close()
        engine.close()
        tensors = [*module.parameters(), *(v for s in engine.optimizers[0].state.values() for v in s.values())]
        assert {type(t) for t in tensors} <= {torch.nn.Parameter, torch.Tensor, float, int}
        assert {t.device.type for t in tensors if isinstance(t, torch.Tensor)} == {"cpu"}
        found = {name: value.detach() for name, value in module.state_dict().items()}
        self.assert_close(found, self.by_hand(self.batches(3)))

    def test_optimizer_state_goes_by_name(self, strategy: Strategy) -> None:
        """Saved state names its parameters as the model does, and resumes to the same weights."""
        _, engine = self.engine(strategy)
        self.run(engine, self.batches(6)[:3])
        (state,) = saved = copy.deepcopy(engine.optimizer_states())
        names = [name for name, _ in self.network().named_parameters()]
        assert [name for group in state["param_groups"] for name in group["params"]] == names
        assert sorted(state["state"]) == sorted(names)
        weights = self.weights(engine)
        self.run(engine, self.batches(6)[3:])
        _, other = self.engine(strategy)
        other.model.load_state_dict(weights)
        other.load_optimizer_states(saved)
        self.run(other, self.batches(6)[3:])
        self.assert_close(self.weights(other), self.weights(engine))

    def test_refuses_another_models_state(self, strategy: Strategy) -> None:
        """State of other parameters or of another number of optimizers is a CheckpointError."""
        _, engine = self.engine(strategy)
        self.run(engine, self.batches(1))
        saved = engine.optimizer_states()
        with pytest.raises(CheckpointError):
            engine.load_optimizer_states([])
        for group in saved[0]["param_groups"]:
            group["params"] = [f"other.{name}" for name in group["params"]]
        saved[0]["state"] = {f"other.{name}": value for name, value in saved[0]["state"].items()}
        with pytest.raises(CheckpointError):
            engine.load_optimizer_states(saved)

    @pytest.mark.parametrize("error", [None, RuntimeError("the run failed")], ids=["success", "failure"])
    def test_can_be_set_up_again(self, strategy: Strategy, error: BaseException | None) -> None:
        """After leave, once or twice, the next call of the trainer sets it up and trains again."""
        strategy.leave(error)
        strategy.leave(error)
        accelerator = self.make_accelerator()
        strategy.setup(None, accelerator, accelerator.parse_devices(1), self.plan())
        _, engine = self.engine(strategy)
        self.run(engine, self.batches(6))
        self.assert_close(self.weights(engine), self.by_hand(self.batches(6)))

    def test_resumes_in_the_core(self, tmp_path: Path) -> None:
        """A run that another trainer resumes from its checkpoint comes to the weights of one that went on."""
        problems = self.make().problems(self.plan())
        if problems:
            pytest.skip(f"this strategy refuses a plain plan: {problems[0]}")
        _assert_same(Job(folder=str(tmp_path)).train(strategy=self.make()), JOBS["plain"])

    def on_ranks(self, job: Job, work: Callable[..., Any] = Job.train) -> list[Any]:
        """Run a job in forked ranks, through the core's trainer and loop.

        Args:
            job: What to train.
            work: What of it to run, called with the job, the rank's number, the number of ranks and the strategy.

        Returns:
            What that returns in each rank: the weights, unless ``work`` is given.
        """
        problems = self.make().problems(Plan(devices=tuple(range(self.size))))
        if problems:
            pytest.skip(f"this strategy refuses {self.size} ranks: {problems[0]}")
        job.network().configure_optimizers()  # what ranks need is imported once, before they are forked
        return run_ranks(lambda rank: work(job, rank, self.size, strategy=self.make()), self.size, self.timeout)

    @pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
    def test_ranks_train_as_one(self, job: Job) -> None:
        """Ranks that share each batch come to the weights of one process, short windows and clipping included."""
        for weights in self.on_ranks(job):
            _assert_same(weights, job)

    def test_ranks_resume_as_one(self, tmp_path: Path) -> None:
        """Ranks that resume from their own checkpoint come to the weights of one process that went on."""
        for weights in self.on_ranks(Job(folder=str(tmp_path))):
            _assert_same(weights, JOBS["plain"])

    def test_a_rank_that_failed_saves_alone(self, tmp_path: Path) -> None:
        """After an error one rank saves while no other does, or is refused because the weights lie on all."""
        path, job = str(tmp_path / "alone.ckpt"), Job()
        found = self.on_ranks(job, partial(Job.fail, path=path))
        if self.make().collective_weights:
            assert "every rank writes its part" in found[0], f"it was not refused: {found[0]!r}"
        else:
            assert found[0] == "", f"rank 0 did not save alone: {found[0]}"
            assert os.path.exists(path), "rank 0 did not save alone"

    def test_a_rank_may_skip_a_batch_or_is_refused(self) -> None:
        """A rank whose training_step returns None counts as zero, or ends the run with an error; none waits for it."""
        import torch

        def skipping(job: Job, rank: int, size: int, strategy: Any) -> Any:
            net, part = job.network(), job.data(rank, size)
            step = net.training_step
            net.training_step = lambda batch, batch_idx: None if rank == batch_idx == 1 else step(batch, batch_idx)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                job.trainer(size, strategy=strategy).fit(net, part, part[:2])
            return {name: value.tolist() for name, value in net.state_dict().items()}

        job = Job(epochs=1)
        try:
            found = self.on_ranks(job, skipping)
        except (MisconfigurationException, RankFailedError) as error:
            if "must return a loss" not in str(error):
                raise
            return
        net, parts = job.network(), [job.data(rank, self.size) for rank in range(self.size)]
        optimizer = net.configure_optimizers()
        for i, batches in enumerate(zip(*parts, strict=True)):
            optimizer.zero_grad()
            losses = [net.loss(batch) for rank, batch in enumerate(batches) if not rank == i == 1]
            (sum(losses) / self.size).backward()
            optimizer.step()
        for weights in found:
            for name, value in net.state_dict().items():
                torch.testing.assert_close(torch.tensor(weights[name]), value, rtol=0.0, atol=1e-6)

    def test_ranks_keep_one_module(self) -> None:
        """After training parameters and buffers are the same on every rank, to the bit."""
        found = self.on_ranks(Job(buffers=True))
        assert all(weights == found[0] for weights in found)
