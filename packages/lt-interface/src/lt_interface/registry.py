"""Registry of plugins: found by name through entry points, imported only when asked for.

Example:
    >>> strategies.get("no such strategy")
    Traceback (most recent call last):
    lt_interface.errors.UnknownPluginError: ...
"""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from lt_interface.errors import InterfaceVersionError, PluginError, Problem, UnknownPluginError, nearest_name
from lt_interface.version import __version__

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "Registry",
    "accelerators",
    "callbacks",
    "checkpoint_ios",
    "clusters",
    "launchers",
    "loggers",
    "precisions",
    "profilers",
    "rescan",
    "strategies",
]

T = TypeVar("T")

# Words that stand for the first of several names that can be used here.
ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "lt.accelerators": {"gpu": ("mps", "cuda")},
    "lt.precisions": {"64": ("64-true",), "32": ("32-true",), "16": ("16-mixed",), "bf16": ("bf16-mixed",)},
}
# What takes the place of a precision where no device computes it fast.
ON_A_CPU = {"16-mixed": "bf16-mixed"}
# What the sibling packages provide, so that a missing one is answered with its command.
SIBLINGS: dict[str, dict[str, str]] = {
    "lt.accelerators": {"cpu": "lt-core", "cuda": "lt-accel[cuda]", "mps": "lt-accel"},
    "lt.strategies": {
        "single_device": "lt-core",
        **dict.fromkeys(("ddp", "ddp_fork", "ddp_notebook", "ddp_spawn"), "lt-accel"),
    },
    "lt.precisions": {
        **dict.fromkeys(("32-true", "64-true", "16-true", "bf16-true"), "lt-core"),
        **dict.fromkeys(("16-mixed", "bf16-mixed", "float8"), "lt-accel"),
        **dict.fromkeys(("transformer-engine", "transformer-engine-float16"), "lt-accel"),
    },
    "lt.loggers": {
        "csv": "lt-core",
        "tensorboard": "lt-loggers[tensorboard]",
        "wandb": "lt-loggers[wandb]",
        "mlflow": "lt-loggers[mlflow]",
    },
    "lt.checkpoint_io": {"safetensors": "lt-core", "async": "lt-core", "lightning-layout": "lt-core"},
    "lt.launchers": {"in_process": "lt-core", "fork": "lt-accel", "spawn": "lt-accel", "subprocess": "lt-accel"},
    "lt.clusters": dict.fromkeys(("kubeflow", "lsf", "mpi", "slurm", "subprocess", "torchrun"), "lt-accel"),
    "lt.profilers": dict.fromkeys(("advanced", "passthrough", "pytorch", "simple"), "lt-core"),
}
# What PyTorch Lightning names and no package here brings yet: beginnings of names, and what to do instead.
_PACKAGE = "Or install a package that brings it."
_NOT_YET: dict[str, dict[str, str]] = {
    "lt.accelerators": dict.fromkeys(
        ("tpu", "xla", "hpu", "ipu", "npu", "xpu"), f'Leave accelerator out, or write "cpu". {_PACKAGE}'
    ),
    "lt.strategies": dict.fromkeys(
        ("fsdp", "deepspeed", "modelparallel", "model_parallel", "xla", "tpu", "single_tpu", "hpu", "single_hpu"),
        f'Write strategy="ddp" where the model fits on one device. {_PACKAGE}',
    )
    | dict.fromkeys(
        ("dp", "ddp2", "ddp_sharded", "horovod", "bagua", "collaborative", "colossalai"), 'Write strategy="ddp".'
    ),
    "lt.loggers": dict.fromkeys(("comet", "neptune"), f'Write logger="csv". {_PACKAGE}'),
    "lt.profilers": {"xla": 'Write profiler="simple", or use torch_xla.debug.profiler around the call.'},
}
# Words for number formats that no precision has as its name, and what they mean.
_MEANT = {
    **dict.fromkeys(("float16", "fp16", "half", "mixed"), '"16-mixed" or "16-true"'),
    **dict.fromkeys(("bfloat16", "bf16"), '"bf16-mixed" or "bf16-true"'),
    **dict.fromkeys(("float32", "fp32", "full"), '"32-true"'),
    **dict.fromkeys(("float64", "fp64", "double"), '"64-true"'),
    "fp8": '"float8" or "transformer-engine"',
    **dict.fromkeys(
        ("bitsandbytes", "nf4", "fp4", "int8"), 'plugins=BitsandbytesPrecision("nf4"), or another mode of it'
    ),
}
# The classes that users import by name from where all plugins seem to be, and the packages that have them.
CLASSES: dict[str, dict[str, str]] = {
    "lt.precisions": dict.fromkeys(
        ("BitsandbytesPrecision", "MixedPrecision", "TransformerEnginePrecision"), "lt-accel"
    ),
    "lt.clusters": {
        f"{name}Environment": "lt-accel" for name in ("Kubeflow", "LSF", "Lightning", "MPI", "SLURM", "TorchElastic")
    },
    "lt.accelerators": dict.fromkeys(("CUDAAccelerator", "MPSAccelerator"), "lt-accel"),
    "lt.strategies": {"DDPStrategy": "lt-accel"},
    "lt.loggers": dict.fromkeys(("MLFlowLogger", "TensorBoardLogger", "WandbLogger"), "lt-loggers"),
}


@lru_cache(maxsize=1)
def _scan() -> dict[str, dict[str, tuple[EntryPoint, ...]]]:
    """Read all entry points of our groups once a process: the scan opens every installed package."""
    from importlib.metadata import entry_points

    found: dict[str, dict[str, list[EntryPoint]]] = {}
    points = entry_points()
    for group in points.groups:
        if not group.startswith("lt."):
            continue
        for point in points.select(group=group):
            same = found.setdefault(group, {}).setdefault(point.name, [])
            if all(p.value != point.value for p in same):  # one package seen twice on sys.path is no conflict
                same.append(point)
    return {g: {n: tuple(p) for n, p in names.items()} for g, names in found.items()}


def rescan() -> None:
    """Forget what is installed, so that the next look-up reads it anew: after an install in a running process.

    Example:
        >>> rescan()
    """
    from importlib import invalidate_caches

    invalidate_caches()
    _scan.cache_clear()


class Registry(Generic[T]):
    """Plugins of one entry-point group.

    A package offers a plugin by an entry point in its metadata, name = module:class; the core asks for it by the
    name that a flag gives. Two packages with the same name are a conflict, not an order.

    Args:
        group: The entry-point group, such as ``lt.strategies``.
        kind: What a plugin of this group is called in messages.

    Example:
        In the ``pyproject.toml`` of the package that brings ``Trainer(strategy="ring")``::

            [project.entry-points."lt.strategies"]
            ring = "ring_kit:RingStrategy"

        >>> clocks = Registry("lt.clocks", "clock")
        >>> clocks.names(), clocks.absent()
        ([], {})
        >>> clocks.class_named("Quartz", "clock_kit")
        Traceback (most recent call last):
        AttributeError: module 'clock_kit' has no attribute 'Quartz'
        >>> class Quartz:
        ...     pass
        >>> clocks.name_of(Quartz) is None
        True
        >>> str(clocks.problem("quartz", "Trainer(clock='quartz')"))
        "Trainer(clock='quartz'): no clock of that name. Installed: none."
        >>> clocks.get("quartz")
        Traceback (most recent call last):
        lt_interface.errors.UnknownPluginError: clock 'quartz': no clock of that name. Installed: none.
    """

    def __init__(self, group: str, kind: str) -> None:
        self.group = group
        self.kind = kind
        self.aliases = ALIASES.get(group, {})

    def __repr__(self) -> str:
        return f"Registry({self.group!r}, {self.kind!r})"

    def names(self) -> list[str]:
        """Return the installed names, from metadata alone: nothing is imported."""
        return sorted(_scan().get(self.group, {}))

    def name_of(self, plugin: type) -> str | None:
        """Return the name under which a class is registered, or None; nothing is imported.

        Args:
            plugin: The class.
        """
        value = f"{plugin.__module__}:{plugin.__qualname__}"
        points = _scan().get(self.group, {})
        return next((name for name, same in points.items() if any(p.value == value for p in same)), None)

    def absent(self) -> dict[str, str]:
        """Return the names that sibling packages would bring, each with the command that installs it."""
        installed = self.names()
        return {name: _command(s) for name, s in SIBLINGS.get(self.group, {}).items() if name not in installed}

    def class_named(self, name: str, module: str) -> Any:
        """Return a class of a sibling package that users import from a module of another one.

        Args:
            name: The class's name.
            module: The module that they import it from, for messages.

        Raises:
            AttributeError: If no sibling has a class of that name.
            ImportError: If it is not installed; the message has the command.
        """
        package = CLASSES.get(self.group, {}).get(name)
        if package is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        points = [point for same in _scan().get(self.group, {}).values() for point in same]
        for point in points:
            if point.attr == name:
                return point.load()
        for top in sorted({point.module.partition(".")[0] for point in points}):
            found = getattr(import_module(top), name, None)
            if found is not None:
                return found
        raise ImportError(
            str(Problem(f"{module}.{name}", "this class comes with another package", "", _command(package)))
        )

    def problem(self, name: str, where: str) -> Problem | None:
        """Return what is wrong with a name, or None if exactly one plugin has it; nothing is imported.

        Args:
            name: The name that a user gave.
            where: The place as the user wrote it, for the message.
        """
        error = self._error(name, where)
        return None if error is None else error.problems[0]

    def get(self, name: str, where: str = "") -> T:
        """Return the one plugin of a name, imported now.

        Args:
            name: The name that the plugin is registered under.
            where: The place of the name as the user wrote it, for messages.

        Raises:
            UnknownPluginError: If none has it; lists what is installed and the nearest name.
            PluginError: If two packages claim it, or its import fails.
            InterfaceVersionError: If it was written for another version of the interface.
        """
        where = where or f"{self.kind} {name!r}"
        error = self._error(name, where)
        if error is not None:
            raise error
        (point,) = _scan()[self.group][name]
        try:
            plugin = point.load()
        except Exception as cause:
            raise PluginError(
                Problem(
                    where,
                    f"{point.value} must be importable",
                    f"{type(cause).__name__}: {str(cause).rstrip('.')}",
                    _mend_import(point, cause),
                )
            ) from cause
        stated = getattr(plugin, "interface_version", None)
        if stated is not None and not fits(str(stated)):
            raise self._misfit(point, str(stated), where)
        return cast("T", plugin)

    def _error(self, name: str, where: str) -> PluginError | None:
        """Return the error that metadata alone shows, or None."""
        points = _scan().get(self.group, {}).get(name, ())
        if not points:
            return UnknownPluginError(self._unknown(name, where))
        if len(points) > 1:
            owners = ", ".join(f"{_owner(p)} ({p.value})" for p in points)
            return PluginError(
                Problem(
                    where,
                    f"only one package may provide the {self.kind} {name!r}",
                    owners,
                    f"Run: pip uninstall {_owner(points[-1])}",
                )
            )
        required = _required_interface(points[0])
        if required is not None and not allows(required):
            return self._misfit(points[0], required, where)
        return None

    def _unknown(self, name: str, where: str) -> Problem:
        siblings = SIBLINGS.get(self.group, {})
        if name in siblings:
            return Problem(where, f"this {self.kind} comes with another package", fix=_command(siblings[name]))
        fix = f"Installed: {', '.join(self.names()) or 'none'}."
        instead = self.instead(name)
        if instead:
            return Problem(where, f"this {self.kind} is not in this version", fix=f"{instead} {fix}")
        if self.group == "lt.precisions" and (meant := _MEANT.get(name.casefold())):
            return Problem(where, f"no {self.kind} of that name", fix=f"Write {meant}. {fix}")
        near = nearest_name(name, [*self.names(), *siblings])
        if near is not None:
            fix += f' Did you mean "{near}"?'
            if near not in self.names():
                fix += f" {_command(siblings[near])}"
        return Problem(where, f"no {self.kind} of that name", fix=fix)

    def instead(self, name: str) -> str:
        """Return what to do instead of a known name that nothing here brings, or an empty string for other names.

        Args:
            name: The name that a flag gives, or a class's without the word for its kind: fsdp of ``FSDPStrategy``.

        Example:
            >>> strategies.instead("FSDP").startswith('Write strategy="ddp"'), strategies.instead("mine")
            (True, '')
        """
        known = _NOT_YET.get(self.group, {})
        words = [word for word in known if f"{name.casefold()}_".startswith(f"{word}_")]
        return known[words[0]] if words else ""

    def _misfit(self, point: EntryPoint, stated: str, where: str) -> InterfaceVersionError:
        owner = _owner(point)
        return InterfaceVersionError(
            Problem(
                where,
                f"{owner} was written for lt-interface {stated}",
                f"lt-interface {__version__}",
                f"Run: pip install --upgrade {owner} lt-interface",
            )
        )


def fits(version: str, ours: str = __version__) -> bool:
    """Return whether a plugin written for one version of the interface works with another.

    Below 1.0 each minor version is its own; from 1.0 on, a plugin needs the same major
    and at most our minor. Text that is no version never fits.

    Args:
        version: The version that the plugin was written for.
        ours: The version that is installed.

    Example:
        >>> fits("0.1.4", ours="0.1.0"), fits("0.2.0", ours="0.1.0"), fits("1.2", ours="1.3")
        (True, False, True)
    """
    theirs = _numbers(version)
    if theirs is None:
        return False
    (their_major, their_minor), (our_major, our_minor) = theirs[:2], (_numbers(ours) or (0, 0, 0))[:2]
    if our_major == 0 or their_major == 0:
        return (their_major, their_minor) == (our_major, our_minor)
    return their_major == our_major and their_minor <= our_minor


def allows(requirement: str, ours: str = __version__) -> bool:
    """Return whether a version range contains a version.

    A clause that is not understood is passed over: only what is known to be wrong is refused.

    Args:
        requirement: A range such as ``>=0.1,<0.2``, as in a package's metadata.
        ours: The version that is installed.

    Example:
        >>> allows(">=0.1,<0.2", ours="0.1.5"), allows("~=0.2", ours="0.1.5")
        (True, False)
    """
    import re

    own = _numbers(ours) or (0, 0, 0)
    for clause in requirement.split(","):
        match = re.fullmatch(r"\s*(===|==|!=|<=|>=|~=|<|>)\s*([\w.*+!-]+)\s*", clause)
        bound = _numbers(match.group(2)) if match else None
        if match is None or bound is None:
            continue
        operator, text = match.groups()
        same = own[: text.count(".")] == bound[: text.count(".")] if text.endswith(".*") else own == bound
        parts = max(1, min(3, text.count(".") + 1) - 1)  # what ~= holds fixed: all but the last
        holds = {
            "===": own == bound,
            "==": same,
            "!=": not same,
            "<=": own <= bound,
            ">=": own >= bound,
            "<": own < bound,
            ">": own > bound,
            "~=": own >= bound and own[:parts] == bound[:parts],
        }
        if not holds[operator]:
            return False
    return True


def _numbers(version: str) -> tuple[int, int, int] | None:
    """Return the first three numbers of a version, 0 where there are fewer, or None for other text."""
    import re

    match = re.match(r"\s*v?(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    if match is None:
        return None
    major, minor, patch = (int(part or 0) for part in match.groups())
    return major, minor, patch


def _owner(point: EntryPoint) -> str:
    """Return the name of the package that an entry point comes from."""
    return point.dist.name if point.dist else point.value.partition(":")[0].partition(".")[0]


def _required_interface(point: EntryPoint) -> str | None:
    """Return the range of lt-interface that a plugin's package asks for, if it says so."""
    import re

    for requirement in (point.dist.requires or []) if point.dist else []:
        match = re.match(r"lt[-_.]interface(?![\w-])\s*(?:\[[^]]*\])?\s*\(?([^;)]*)", requirement, re.IGNORECASE)
        if match and match.group(1).strip():
            return match.group(1).strip()
    return None


def _command(requirement: str) -> str:
    """Return the command that installs a sibling, or brings an older one up to date."""
    from importlib.metadata import PackageNotFoundError, version
    from shlex import quote

    try:
        version(requirement.partition("[")[0])
    except PackageNotFoundError:
        return f"Run: pip install {quote(requirement)}"
    return f"Run: pip install --upgrade {quote(requirement)}"


def _mend_import(point: EntryPoint, cause: Exception) -> str:
    """Return what to do about a plugin that does not import: install its extra where there is one."""
    owner = _owner(point)
    extras = (point.dist.metadata.get_all("Provides-Extra") or []) if point.dist else []
    if isinstance(cause, ModuleNotFoundError):
        if point.name in extras:
            return f"Run: pip install '{owner}[{point.name}]'"
        missing = (cause.name or "").partition(".")[0]
        if missing and missing != point.module.partition(".")[0]:
            return f"Install the module {missing}, which {owner} needs."
    return f"Run: pip install --force-reinstall {owner}"


accelerators: Registry[Any] = Registry("lt.accelerators", "accelerator")
strategies: Registry[Any] = Registry("lt.strategies", "strategy")
precisions: Registry[Any] = Registry("lt.precisions", "precision")
loggers: Registry[Any] = Registry("lt.loggers", "logger")
checkpoint_ios: Registry[Any] = Registry("lt.checkpoint_io", "checkpoint format")
clusters: Registry[Any] = Registry("lt.clusters", "cluster environment")
launchers: Registry[Any] = Registry("lt.launchers", "launcher")
profilers: Registry[Any] = Registry("lt.profilers", "profiler")
callbacks: Registry[Any] = Registry("lt.callbacks", "callback")
