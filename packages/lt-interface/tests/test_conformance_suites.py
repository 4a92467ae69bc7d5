"""The conformance suites pass a good plugin, catch bad ones, and cannot be thinned out."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from lt_interface import CheckpointError, Logger, PlainCollectives, Plan, Problem, StrategyVerbs, World
from lt_interface.testing import (
    AcceleratorConformance,
    CheckpointIOConformance,
    ClusterConformance,
    Conformance,
    LauncherConformance,
    LoggerConformance,
    PrecisionConformance,
    StrategyConformance,
)
from lt_interface.testing.reference import ReferenceAccelerator, ReferencePrecision
from lt_interface.testing.trees import assert_same, plain_tree, tensor_tree

SUITES = [
    AcceleratorConformance,
    CheckpointIOConformance,
    ClusterConformance,
    LauncherConformance,
    LoggerConformance,
    PrecisionConformance,
    StrategyConformance,
]


class LinesLogger(Logger):
    """Write one JSON line a call."""

    def __init__(self, save_dir: str) -> None:
        self._root, self._version = save_dir, -1

    @property
    def name(self) -> str:
        return "lines"

    @property
    def version(self) -> int:
        with self.exclusive():
            while self._version < 0:
                number = len(os.listdir(self._root))
                os.mkdir(os.path.join(self._root, str(number)))
                self._version = number
        return self._version

    @property
    def directory(self) -> str:
        return os.path.join(self._root, str(self.version))

    @property
    def log_dir(self) -> str:
        return self.directory

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.exclusive(), open(os.path.join(self.directory, "lines"), "a", encoding="utf-8") as file:
            file.write(json.dumps([step or 0, metrics]) + "\n")

    def rewind(self, step: int, version: int | str | None) -> bool:
        self._version = int(version or 0)
        path = Path(self.directory, "lines")
        kept = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)[0] <= step]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        return False

    def __getstate__(self) -> dict[str, Any]:
        _ = self.version
        return super().__getstate__()


class TestLinesLogger(LoggerConformance):
    made: type[Logger] = LinesLogger

    def make_logger(self, folder: Path) -> Logger:
        return self.made(save_dir=str(folder))  # type: ignore[call-arg]

    def read(self, logger: Logger) -> dict[str, dict[int, float]]:
        found: dict[str, dict[int, float]] = {}
        path = Path(logger.directory or "", "lines")
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            step, metrics = json.loads(line)
            for name, value in metrics.items():
                assert step not in found.setdefault(name, {})
                found[name][step] = value
        return found


class TestReferenceAccelerator(AcceleratorConformance):
    def make(self) -> Any:
        return Parsing()


class Parsing(ReferenceAccelerator):
    """Parse device flags as the interface asks."""

    def parse_devices(self, spec: Any) -> list[int]:
        if spec in ("auto", 1, "1", [0]) and spec is not True:
            return [0]
        raise ValueError(f"no such devices: {spec}")


# Abilities of an accelerator whose advice is no sentence.
DESCRIBED: dict[str, Any] = {
    "describe": lambda self, index: f"board:{index}",
    "missing": lambda self: None,
    "advice": lambda self, device, plan: ["no sentence"],
}


class TestReferencePrecision(PrecisionConformance):
    def make(self) -> Any:
        return ReferencePrecision()


class PlainStrategy(StrategyVerbs):
    """Run on the CPU."""

    name = "plain"
    default_launcher: str | None = None
    collective_forward = collective_weights = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.collectives = PlainCollectives()
        self.mesh = None

    def problems(self, plan: Plan, module: Any = None) -> list[Any]:
        return [] if plan.processes == 1 else [Problem("strategy", "it is of one process")]

    def setup(self, cluster: Any, accelerator: Any, devices: Any, plan: Plan) -> World:
        return World()

    def init_context(self, empty: bool | None = None) -> Any:
        return torch.device("cpu")

    def shard(self, module: Any, precision: Any, loads_weights: bool) -> Any:
        if any(p.is_meta for p in module.parameters()):
            module.to_empty(device="cpu")
            for part in module.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
        return precision.convert(module)

    def engine(self, module: Any, optimizers: Any, schedulers: Any, precision: Any, plan: Plan, default: Any) -> Any:
        return default(module, optimizers, schedulers, precision, plan)

    def weights(self, module: Any) -> Any:
        return module

    def checkpoint_io(self) -> str:
        return "safetensors"

    def release(self, module: Any, optimizers: Any) -> None:
        pass

    def leave(self, error: BaseException | None = None) -> None:
        pass


class TestPlainStrategy(StrategyConformance):
    def make(self) -> Any:
        return PlainStrategy()


class PickleIO:
    """Checkpoint format with every sin: pickle, no checksum, no atomic replacement."""

    collective = False

    def save(self, tree: dict[str, Any], path: str) -> None:
        with open(path, "wb") as file:
            pickle.dump(tree, file)

    def load(self, path: str) -> dict[str, Any]:
        with open(path, "rb") as file:
            return dict(pickle.load(file))

    def peek(self, path: str) -> dict[str, Any]:
        return self.load(path)

    def verify(self, path: str) -> None:
        self.load(path)

    def remove(self, path: str) -> None:
        os.unlink(path)

    def wait(self) -> None:
        pass


@pytest.mark.parametrize("suite", SUITES)
def test_overriding_a_test_is_refused(suite: type[Conformance]) -> None:
    """A subclass that replaces a test, or sets it to None, cannot even be defined."""
    for name in suite.suite_tests:
        with pytest.raises(TypeError, match=name):
            type("TestThinned", (suite,), {name: lambda self: None})
        with pytest.raises(TypeError, match=name):
            type("TestThinned", (suite,), {name: None})


@pytest.mark.parametrize("suite", SUITES)
def test_mixin_can_not_hide_a_test(suite: type[Conformance]) -> None:
    """A test of the suite cannot be hidden by a base class in front of it."""
    mixin = type("Mixin", (), {"test_pickles": lambda self: None, "test_fills_the_protocol": lambda self: None})
    with pytest.raises(TypeError, match="test_fills_the_protocol"):
        type("TestThinned", (mixin, suite), {})


def test_removal_after_definition_fails_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is replaced or deleted after the class was made is found by the suite's own test."""

    class TestWhole(AcceleratorConformance):
        def test_of_my_own(self) -> None:
            """A test beside the suite's own is welcome."""

    TestWhole().test_suite_is_whole()
    monkeypatch.setattr(TestWhole, "test_pickles", None, raising=True)
    with pytest.raises(AssertionError, match="test_pickles"):
        TestWhole().test_suite_is_whole()
    monkeypatch.undo()
    monkeypatch.delattr(AcceleratorConformance, "test_pickles")
    with pytest.raises(AssertionError, match="test_pickles"):
        TestWhole().test_suite_is_whole()


@pytest.mark.parametrize("mark", [pytest.mark.skip, pytest.mark.skipif(True, reason="no"), pytest.mark.xfail])
def test_marking_a_suite_away_fails_a_test(mark: Any) -> None:
    """A suite that is marked to be skipped or to fail is found by its own test."""
    marked = mark(type("TestMarked", (AcceleratorConformance,), {}))
    with pytest.raises(AssertionError, match="may not be skipped"):
        marked().test_suite_is_whole()


def test_unnamed_plugin_fails() -> None:
    """A suite without a plugin's name and without make says what to give."""
    nameless = type("TestNameless", (PrecisionConformance,), {})()
    with pytest.raises(pytest.fail.Exception, match="name the plugin"):
        nameless.make()


def _mutant(base: type, **changes: Any) -> Any:
    return type("Mutant", (base,), changes)()


@pytest.mark.parametrize(
    ("test", "arguments", "changes"),
    [
        ("test_names_a_default_strategy", (), {"default_strategy": lambda self, devices, nodes: ""}),
        ("test_auto_means_all_counted_devices", (), {"device_count": lambda self: 3}),
        ("test_refuses_no_device", (0,), {"parse_devices": lambda self, spec: []}),
        ("test_one_device_in_any_spelling", ("1",), {"parse_devices": lambda self, spec: [True]}),
        ("test_stats_are_figures", (torch.device("cpu"),), {"stats": lambda self, device: {"a": "b"}}),
        ("test_fills_the_protocol", (), {"priority": "high"}),
        ("test_questions_create_no_context", (), {"problems": lambda self, plan, forks: [Problem("a", "b")]}),
        ("test_questions_create_no_context", (), {**DESCRIBED, "missing": lambda self: Problem("a", "b")}),
        ("test_questions_create_no_context", (), {**DESCRIBED, "describe": lambda self, index: ""}),
        ("test_random_state_comes_back", (torch.device("cpu"),), {"rng_state": lambda self, device: "lost"}),
        (
            "test_explains_only_what_it_knows",
            (torch.device("cpu"),),
            {"explain": lambda self, error, device, owners: "help"},
        ),
        ("test_explains_only_what_it_knows", (torch.device("cpu"),), DESCRIBED),
    ],
)
def test_bad_accelerators_are_caught(test: str, arguments: tuple[Any, ...], changes: dict[str, Any]) -> None:
    """Each rule for accelerators fails a plugin that breaks it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(AcceleratorConformance(), test)(_mutant(Parsing, **changes), *arguments)


@pytest.mark.parametrize(
    ("test", "changes"),
    [
        ("test_converts_parameters", {"convert": lambda self, module: module.double()}),
        ("test_converts_parameters", {"convert": lambda self, module: copy.deepcopy(module)}),
        ("test_computes_in_its_format", {"compute_dtype": torch.bfloat16}),
        ("test_computes_in_its_format", {"forward": lambda self: torch.autocast("cpu", dtype=torch.bfloat16)}),
        ("test_converts_batches", {"convert_batch": lambda self, batch: dict(batch)}),
        ("test_gradients_have_their_true_size", {"scale": lambda self, loss: loss * 1024}),
        ("test_scale_is_a_factor", {"scale": lambda self, loss: loss * 1024}),
        ("test_scale_is_a_factor", {"scale": lambda self, loss: loss.detach()}),
        ("test_learns", {"step": lambda self, optimizer, closure=None: True}),
        ("test_step_takes_a_closure", {"step": lambda self, optimizer, closure=None: optimizer.step() is None}),
        ("test_step_passes_arguments", {"step": lambda self, optimizer, closure=None, **kwargs: not optimizer.step()}),
        ("test_problems_are_listed", {"problems": lambda self, plan: ["no such format"]}),
        ("test_a_skipped_step_changes_nothing", {"step": lambda self, optimizer, closure=None: bool(optimizer.step())}),
    ],
)
def test_bad_precisions_are_caught(test: str, changes: dict[str, Any]) -> None:
    """Each rule for precisions fails a plugin that breaks it."""
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(TestReferencePrecision(), test)(_mutant(ReferencePrecision, **changes))


def test_leaking_context_is_caught() -> None:
    """A forward context that leaves the default format changed fails."""

    class Leaky:
        def __enter__(self) -> None:
            torch.set_default_dtype(torch.float64)

        def __exit__(self, *error: object) -> None:
            pass

    try:
        with pytest.raises(AssertionError):
            TestReferencePrecision().test_contexts_leave_no_trace(_mutant(ReferencePrecision, forward=Leaky), "forward")
    finally:
        torch.set_default_dtype(torch.float32)


def test_forgotten_state_is_caught() -> None:
    """A precision whose state does not come back fails the test of resuming."""

    class Counting(ReferencePrecision):
        def __init__(self) -> None:
            self.steps = 0

        def step(self, optimizer: Any, closure: Any = None, **kwargs: Any) -> bool:
            self.steps += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.1 / self.steps
            return super().step(optimizer, closure, **kwargs)

    suite = type("TestCounting", (PrecisionConformance,), {"make": lambda self: Counting()})()
    with pytest.raises(AssertionError):
        suite.test_resumes_to_the_bit(Counting())


class _WithEngine(PlainStrategy):
    """Let a test change the engine."""

    changes: dict[str, Any] = {}

    def engine(self, *args: Any, **kwargs: Any) -> Any:
        engine = super().engine(*args, **kwargs)
        for name, value in self.changes.items():
            setattr(engine, name, value)
        return engine


@pytest.mark.parametrize(
    ("test", "arguments", "changes"),
    [
        ("test_trains_as_by_hand", (None,), {"backward": lambda loss: (loss * 1.0001).backward()}),
        ("test_trains_as_by_hand", (0.05,), {"clip": lambda index, value, algorithm: None}),
        ("test_clip_returns_the_norm", (), {"clip": lambda index, value, algorithm: None}),
        ("test_engine_fills_the_protocol", (), {"owns": frozenset({"everything"})}),
        ("test_engine_fills_the_protocol", (), {"call": {}}),
        ("test_optimizer_state_goes_by_name", (), {"load_optimizer_states": lambda states: None}),
        ("test_refuses_another_models_state", (), {"load_optimizer_states": lambda states: None}),
    ],
)
def test_bad_engines_are_caught(test: str, arguments: tuple[Any, ...], changes: dict[str, Any]) -> None:
    """Each rule for engines fails a strategy whose engine breaks it."""
    strategy = _mutant(_WithEngine, changes=changes)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(TestPlainStrategy(), test)(strategy, *arguments)


def test_bad_strategies_are_caught() -> None:
    """A strategy that leaves parameters on the meta device, makes another module, or reduces wrongly, fails."""
    suite = TestPlainStrategy()
    lazy = _mutant(PlainStrategy, shard=lambda self, module, precision, loads_weights: module)
    with pytest.raises(AssertionError):
        suite.test_shard_materialises(lazy, False)
    copying = _mutant(PlainStrategy, shard=lambda self, module, precision, loads_weights: copy.deepcopy(module))
    with pytest.raises(AssertionError):
        suite.test_shard_gives_final_parameters(copying)
    strategy = PlainStrategy()
    strategy.collectives = _mutant(PlainCollectives, reduce=lambda self, tensor, op="mean": tensor * 2)
    with pytest.raises(AssertionError):
        suite.test_collectives_of_one_rank(strategy, "sum")


class _Half:
    """Weights of a module with ``state_dict`` and ``load_state_dict`` alone, as any other state has."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def state_dict(self) -> Any:
        return self.module.state_dict()

    def load_state_dict(self, state: Any, /) -> None:
        self.module.load_state_dict(state)


class _Lenient(_Half):
    """Weights that load what fits and never complain."""

    def load_state_dict(self, state: Any, /, strict: bool = True, assign: bool = False) -> None:
        self.module.load_state_dict(state, strict=False)


class _Forgetful(_Half):
    """Weights that load nothing."""

    def load_state_dict(self, state: Any, /, strict: bool = True, assign: bool = False) -> None:
        pass


@pytest.mark.parametrize(
    ("test", "kind", "error"),
    [
        ("test_weights_go_by_name", _Half, TypeError),
        ("test_weights_go_by_name", _Forgetful, AssertionError),
        ("test_weights_say_what_does_not_fit", _Lenient, pytest.fail.Exception),
        ("test_resumes_in_the_core", _Half, TypeError),
        ("test_resumes_in_the_core", _Forgetful, AssertionError),
    ],
)
def test_bad_weights_are_caught(tmp_path: Path, test: str, kind: type, error: type[BaseException]) -> None:
    """Weights that the core cannot save to and resume from fail the suite of strategies."""

    class Broken(PlainStrategy):
        name = "plain"

        def weights(self, module: Any) -> Any:
            return kind(module)

    suite = type("TestBroken", (StrategyConformance,), {"make": lambda self: Broken()})()
    with pytest.raises(error):
        getattr(suite, test)(tmp_path if "core" in test else Broken())


def _silent(self: Any, metrics: Any, step: Any = None) -> None:
    pass


@pytest.mark.parametrize(
    ("test", "changes"),
    [
        ("test_metrics_come_back", {"log_metrics": _silent}),
        ("test_goes_on_after_finish", {"finish": lambda self, status: setattr(self, "log_metrics", lambda *a: None)}),
        ("test_identity_is_stable", {"name": property(lambda self: os.urandom(4).hex())}),
        ("test_lock_is_one_and_reentrant", {"exclusive": lambda self: nullcontext()}),
    ],
)
def test_bad_loggers_are_caught(tmp_path: Path, test: str, changes: dict[str, Any]) -> None:
    """Each rule for loggers fails a plugin that breaks it."""
    logger = type("Mutant", (LinesLogger,), changes)(save_dir=str(tmp_path))
    with pytest.raises((AssertionError, KeyError, pytest.fail.Exception)):
        getattr(TestLinesLogger(), test)(logger)


def test_shared_run_is_caught(tmp_path: Path) -> None:
    """Loggers that write to one folder fail the test that runs do not mix."""
    suite = TestLinesLogger()
    suite.made = type("Mutant", (LinesLogger,), {"version": 0, "directory": str(tmp_path)})
    with pytest.raises(AssertionError):
        suite.test_runs_do_not_mix(tmp_path)


def test_useless_rewind_is_caught(tmp_path: Path) -> None:
    """A rewind that keeps what came after the checkpoint fails."""

    def keep(self: Any, step: int, version: Any) -> bool:
        self._version = int(version)
        return False

    suite = TestLinesLogger()
    suite.made = type("Mutant", (LinesLogger,), {"rewind": keep})
    with pytest.raises(AssertionError):
        suite.test_rewinds(tmp_path)


@pytest.mark.parametrize(
    "test",
    ["test_failed_save_keeps_the_old", "test_missing_is_an_error", "test_damage_is_found", "test_pickles_are_not_run"],
)
def test_bad_checkpoint_formats_are_caught(tmp_path: Path, test: str) -> None:
    """A format built on pickle without checksums fails every rule of safety."""
    suite, path = CheckpointIOConformance(), str(tmp_path / "a.ckpt")
    check: Callable[..., None] = getattr(suite, test)
    with pytest.raises((AssertionError, pytest.fail.Exception, CheckpointError, OSError, pickle.PickleError, EOFError)):
        check(PickleIO(), path, tmp_path) if test == "test_pickles_are_not_run" else check(PickleIO(), path)


def test_late_snapshot_is_caught(tmp_path: Path) -> None:
    """A format that writes after save returned without a copy fails."""

    class Lazy(PickleIO):
        due: tuple[dict[str, Any], str] | None = None

        def save(self, tree: dict[str, Any], path: str) -> None:
            self.due = (tree, path)

        def wait(self) -> None:
            if self.due is not None:
                super().save(*self.due)

    with pytest.raises(AssertionError):
        CheckpointIOConformance().test_save_is_a_snapshot(Lazy(), str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((1,), [1]),
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 0}, {"1": 0}),
        (torch.zeros(2), torch.zeros(3)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.float64)),
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        ([torch.zeros(1)], [0.0]),
    ],
)
def test_trees_differ(found: Any, expected: Any) -> None:
    """Types, order, key types, signs and formats count when trees are compared."""
    with pytest.raises(AssertionError):
        assert_same(found, expected)


def test_trees_are_same() -> None:
    """A tree equals its twin, nan included, and both cover every plain type."""
    assert_same({**plain_tree(), **tensor_tree()}, {**plain_tree(), **tensor_tree()})
    assert_same(math.nan, float("nan"))
