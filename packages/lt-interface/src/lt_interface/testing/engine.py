"""Conformance suite of engines, which the core's own loop drives."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest

from lt_interface.checkpoint import SavesItself
from lt_interface.engine import Engine
from lt_interface.errors import CheckpointError
from lt_interface.registry import strategies
from lt_interface.testing.suite import Conformance
from lt_interface.testing.training import Job

__all__ = ["EngineConformance", "RecordingEngine"]

# Five batches: with two or three a window the epoch's last window is short.
JOBS = {
    "plain": Job(),
    "clip": Job(clip=0.05),
    "window": Job(batches=6, accumulate=2),
    "clipped-window": Job(batches=6, accumulate=3, clip=0.05),
    "short-window": Job(accumulate=2),
    "buffers": Job(buffers=True),
    "scheduled": Job(scheduler="step"),
    "scheduled-window": Job(batches=6, accumulate=2, scheduler="step"),
    "scheduled-epochs": Job(epochs=3, scheduler="epoch"),
}


class RecordingEngine:
    """Engine in front of another one, which notes the calls that the core makes.

    Args:
        engine: The engine under test.
        calls: Where the calls are noted, by name.

    Example:
        >>> from lt_interface.testing.reference import ReferenceEngine, ReferencePrecision
        >>> class Net:
        ...     def training_step(self, batch, batch_idx):
        ...         return batch * 2
        >>> calls = []
        >>> engine = RecordingEngine(ReferenceEngine(Net(), [], [], ReferencePrecision(), None), calls)
        >>> engine.call["training_step"](21, 0), calls
        (42, ['training_step'])
    """

    def __init__(self, engine: Any, calls: list[str]) -> None:
        self._engine, self._calls = engine, calls
        self.call = {name: self._noting(name, step) for name, step in engine.call.items()}
        self.before_forward = engine.before_forward and self._noting("before_forward", engine.before_forward)
        self.boundary = engine.boundary and self._noting("boundary", engine.boundary)
        self.window, self.update = engine.window and self._window, self._update
        for name in ("backward", "unscale", "clip", "close"):
            setattr(self, name, self._noting(name, getattr(engine, name)))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._engine, name)

    def _update(self, index: int, last: bool, closure: Callable[[], Any] | None = None, **kwargs: Any) -> bool:
        self._calls.append("update last" if last else "update")
        stepped: bool = self._engine.update(index, last, closure, **kwargs)
        return stepped

    def _noting(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*args: Any, **kwargs: Any) -> Any:
            self._calls.append(name)
            return call(*args, **kwargs)

        return noting

    @contextmanager
    def _window(self, last: bool) -> Iterator[None]:
        self._calls.append("window last" if last else "window")
        context = self._engine.window(last)
        if context is None:
            yield
        else:
            with context:
                yield
        self._calls.append("window ends")


class EngineConformance(Conformance, suite=True):
    """Tests of a strategy's engine in one process, through the core's trainer and loop; skipped without lt-core.

    Attributes:
        tolerance: How far weights may lie from those of the core's plain engine; 0 asks for the same bits.
        divides_short_windows: Whether a window that the epoch's end cuts short counts by its own length.

    Example:
        ::

            class TestRingEngine(EngineConformance):
                plugin = "ring"
                tolerance = 1e-6
    """

    registry = strategies
    tolerance: ClassVar[float] = 0.0
    divides_short_windows: ClassVar[bool] = True

    def recorded(self) -> tuple[Any, list[str], list[Engine]]:
        """Return a strategy whose engines are recorded, the list of the calls, and the list of the engines."""
        made, calls, engines = self.make(), list[str](), list[Engine]()
        build = made.engine

        def engine(*args: Any, **kwargs: Any) -> Any:
            engines.append(build(*args, **kwargs))
            return RecordingEngine(engines[-1], calls)

        made.engine = engine
        return made, calls, engines

    def assert_close(self, found: dict[str, Any], expected: dict[str, Any]) -> None:
        """Compare values by name, bit for bit where the tolerance is 0.

        Args:
            found: What was trained with the engine under test.
            expected: What the core's plain engine trained.

        Raises:
            AssertionError: If a name or a value differs.
        """
        import torch

        assert list(found) == list(expected)
        for name, value in expected.items():
            distance = (torch.tensor(found[name]) - torch.tensor(value)).abs().max()
            assert float(distance) <= self.tolerance, f"{name}: {float(distance):.2g} apart"

    @pytest.mark.parametrize("name", list(JOBS))
    def test_trains_in_the_loop(self, name: str) -> None:
        """The core's loop trains with this engine as with its plain one: clipping, windows and schedulers included."""
        if name == "short-window" and not self.divides_short_windows:
            pytest.skip("this engine divides a short window by the full length")
        self.assert_close(JOBS[name].train(strategy=self.make()), JOBS[name].train())

    def test_calls_come_in_order(self) -> None:
        """Each batch has its window around forward and backward, then its update, its boundary and its last hook."""
        strategy, calls, engines = self.recorded()
        job = Job(batches=4, epochs=1, accumulate=2)
        net = job.network()
        net.on_train_batch_end = lambda outputs, batch, batch_idx: calls.append("batch ends")
        _fit(job, net, strategy, limit_val_batches=0)
        (engine,) = engines
        owned = "accumulate" in engine.owns
        expected: list[str] = []
        for last in (False, True) * 2:
            if engine.window is not None:
                expected.append("window last" if last else "window")
            expected += ["before_forward"] if engine.before_forward is not None else []
            expected += ["training_step", "backward"]
            expected += ["window ends"] if engine.window is not None else []
            if last or owned:
                expected.append("update last" if last else "update")
            expected += ["boundary"] if engine.boundary is not None else []
            expected.append("batch ends")
        assert [c for c in calls if c not in ("unscale", "close")] == expected
        assert calls.count("close") == 1

    @pytest.mark.parametrize("stage", ["validate", "test", "predict"])
    def test_evaluation_goes_through_the_engine(self, stage: str) -> None:
        """Each batch outside of training is one call of the engine's step, its boundary, and then its last hook."""
        strategy, calls, engines = self.recorded()
        job, net = Job(batches=3), Job().network()
        word = {"validate": "validation"}.get(stage, stage)
        setattr(net, f"on_{word}_batch_end", lambda outputs, batch, batch_idx: calls.append("batch ends"))
        net.test_step = net.validation_step
        net.predict_step = lambda batch, batch_idx: net.layers(batch[0])
        run = getattr(job.trainer(strategy=strategy), stage)
        run(net, job.data(0, 1), **({} if stage == "predict" else {"verbose": False}))
        engine = engines[-1]
        batch = ["before_forward"] if engine.before_forward is not None else []
        batch += [f"{word}_step"]
        batch += ["boundary"] if engine.boundary is not None else []
        batch += ["batch ends"]
        assert [c for c in calls if c != "close"] == batch * 3

    def test_one_engine_serves_a_run(self) -> None:
        """With nothing changed, three epochs use one engine."""
        strategy, _, engines = self.recorded()
        job = Job(epochs=3)
        _fit(job, job.network(), strategy)
        assert len(engines) == 1

    def test_a_changed_module_gets_a_new_engine(self) -> None:
        """Layers that are frozen for an epoch train on in the next one, as with the plain engine."""

        def train(strategy: Any) -> list[Any]:
            job = Job(epochs=3)
            net = job.network()

            def freeze() -> None:
                net.layers[0].requires_grad_(net.current_epoch != 1)

            net.on_train_epoch_start = freeze
            _fit(job, net, strategy)
            weights: list[Any] = net.layers[0].weight.tolist()
            return weights

        self.assert_close({"first": train(self.make())}, {"first": train("single_device")})

    def test_users_steps_go_through_the_engine(self) -> None:
        """Manual optimization, with a scheduler and clipping by hand, trains as with the plain engine."""

        def train(strategy: Any) -> dict[str, Any]:
            job = Job(epochs=2)
            net = job.network()
            net.automatic_optimization = False

            def step(batch: Any, batch_idx: int) -> None:
                import torch

                optimizer = net.optimizers()
                optimizer.zero_grad()
                net.manual_backward(torch.nn.functional.mse_loss(net.layers(batch[0]), batch[1]))
                net.clip_gradients(optimizer, gradient_clip_val=0.05, gradient_clip_algorithm="norm")
                optimizer.step()

            net.training_step = step
            trainer = _fit(job, net, strategy, limit_val_batches=0)
            assert trainer.global_step == 10
            return {name: value.tolist() for name, value in net.state_dict().items()}

        if self.owned() & {"accumulate", "clip"}:
            pytest.skip("this engine steps and clips by itself")
        self.assert_close(train(self.make()), train("single_device"))

    def test_clips_once(self) -> None:
        """A module that clips in a hook of its own is clipped once, by the hook or by an engine that owns clipping."""

        class Clips:
            def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
                self.clip_gradients(*args, **kwargs)  # type: ignore[attr-defined]

        job = JOBS["clip"]
        strategy, calls, engines = self.recorded()
        net = job.network()
        net.__class__ = type("Net", (Clips, type(net)), {})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*clips the gradients itself, so this override is not called")
            _fit(job, net, strategy)
        assert calls.count("clip") == (0 if "clip" in engines[0].owns else job.steps)
        expected = job.train()
        del expected["val_loss"]
        self.assert_close({name: value.tolist() for name, value in net.state_dict().items()}, expected)

    def test_everybody_gets_the_engines_optimizers(self) -> None:
        """Hooks and the user's handles have the engine's optimizers, and stepping a handle updates the weights once."""
        seen: list[Any] = []
        strategy, _, engines = self.recorded()
        job = Job(epochs=1)
        net = job.network()
        net.on_before_zero_grad = seen.append
        net.on_before_optimizer_step = seen.append
        net.on_train_batch_end = lambda outputs, batch, batch_idx: seen.append(net.optimizers().optimizer)
        _fit(job, net, strategy)
        assert len(seen) == 3 * job.steps
        assert all(optimizer is engines[0].optimizers[0] for optimizer in seen)

    def test_users_find_the_state_in_their_optimizers(self) -> None:
        """After a fit the optimizers that configure_optimizers returned hold plain states, as with the plain engine."""

        def momenta(strategy: Any) -> dict[str, Any]:
            job = Job()
            net = job.network()
            (optimizer,) = _fit(job, net, strategy).optimizers
            return {n: optimizer.state[p]["momentum_buffer"].tolist() for n, p in net.named_parameters()}

        self.assert_close(momenta(self.make()), momenta("single_device"))

    def owned(self) -> frozenset[str]:
        """Return what the engine under test owns."""
        strategy, _, engines = self.recorded()
        job = Job(batches=1, epochs=1)
        _fit(job, job.network(), strategy)
        return engines[0].owns

    def test_a_resumed_run_is_the_same(self, tmp_path: Any) -> None:
        """A run saved between two epochs and resumed in a new trainer ends at the weights of one that went through."""
        import torch

        whole, first, rest = (Job(epochs=n) for n in (3, 1, 3))
        expected = whole.train(strategy=self.make())
        trainer = _fit(first, first.network(), self.make())
        trainer.save_checkpoint(str(tmp_path / "one.ckpt"))
        net = rest.network()
        again = rest.trainer(strategy=self.make())
        again.fit(net, rest.data(0, 1), rest.data(0, 1)[:2], ckpt_path=str(tmp_path / "one.ckpt"))
        assert again.current_epoch == 3
        for name, value in net.state_dict().items():
            torch.testing.assert_close(value, torch.tensor(expected[name]), rtol=0.0, atol=self.tolerance)

    def test_what_it_saves_itself_comes_back(self, tmp_path: Any) -> None:
        """An engine that saves itself fills the folder that it is given; a new one takes it over, or refuses it."""
        strategy, engines = self.make(), list[Engine]()
        build = strategy.engine

        def engine(*args: Any, **kwargs: Any) -> Engine:
            engines.append(build(*args, **kwargs))
            return engines[-1]

        strategy.engine = engine
        job, path = Job(), str(tmp_path / "one.ckpt")
        net = job.network()
        trainer = _fit(job, net, strategy)
        if not isinstance(engines[-1], SavesItself):
            pytest.skip("this engine leaves saving to the core")
        trainer.save_checkpoint(path)
        (folder,) = tmp_path.glob("one.ckpt.*")
        assert list(folder.iterdir()), "save must write into the folder"
        other = job.network()
        job.trainer(strategy=self.make()).validate(other, job.data(0, 1), ckpt_path=path, verbose=False)
        trained = {name: value.tolist() for name, value in net.state_dict().items()}
        self.assert_close({name: value.tolist() for name, value in other.state_dict().items()}, trained)
        for part in folder.iterdir():
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        with pytest.raises(CheckpointError):
            _fit(job, job.network(), self.make(), ckpt_path=path)

    def test_fits_again(self) -> None:
        """A second fit of the same trainer and module goes on with plain parameters and a new engine."""
        strategy, _, engines = self.recorded()
        job = Job()
        net = job.network()
        trainer = _fit(job, net, strategy)
        trainer.max_epochs = 2 * job.epochs
        trainer.fit(net, job.data(0, 1), job.data(0, 1)[:2])
        assert len(engines) == 2
        assert trainer.global_step == 2 * job.steps
        assert _plain(net.parameters())


def _fit(job: Job, net: Any, strategy: Any, **flags: Any) -> Any:
    """Train a module on a job's data, and return the trainer."""
    path = flags.pop("ckpt_path", None)
    trainer = job.trainer(strategy=strategy, **flags)
    trainer.fit(net, job.data(0, 1), job.data(0, 1)[:2], ckpt_path=path)
    return trainer


def _plain(parameters: Sequence[Any] | Iterator[Any]) -> bool:
    import torch

    return all(type(p) is torch.nn.Parameter and p.device.type == "cpu" for p in parameters)
