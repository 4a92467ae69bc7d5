"""Show progress with tqdm, by bars that a subclass can exchange one by one."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from lt_core.callbacks.progress.forecast import taken_text
from lt_core.callbacks.progress.lines import line
from lt_core.callbacks.progress.progress_bar import ProgressBar
from lt_core.callbacks.progress.screen import Screen, detect
from lt_core.callbacks.progress.view import View, ended_text, metrics_texts, value_text
from lt_core.notices import warn
from lt_core.state.progress import TrainerFn
from lt_interface.errors import ConfigError, MissingPackageError, Problem

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["TQDMProgressBar"]

_SECONDS = {Screen.TERMINAL: 0.1, Screen.NOTEBOOK: 0.1, Screen.LINES: 10.0}  # between two drawings
# The inner one is closed first: it leaves the cursor in the outer one's line, which then puts it at the line's start.
_BARS = ("_val_progress_bar", "_train_progress_bar", "_test_progress_bar", "_predict_progress_bar")


@lru_cache(maxsize=1)
def _tqdm() -> Any:
    """Return the class of our bars, which a module imports under the name ``Tqdm``; tqdm is imported here.

    Raises:
        MissingPackageError: If tqdm is not installed.
    """
    try:
        if detect() is Screen.NOTEBOOK and find_spec("ipywidgets") is not None:
            from tqdm.notebook import tqdm
        else:
            from tqdm import tqdm
    except ImportError:
        fix = "Run: pip install 'lt-core[tqdm]'"
        raise MissingPackageError(Problem("TQDMProgressBar", "it needs the package tqdm", "", fix)) from None

    class Tqdm(tqdm):  # type: ignore[misc]
        """Bar whose numbers look as in our other bars."""

        monitor_interval = 0  # no thread beside the loop: a worker that is forked would not have it

        @staticmethod
        def format_num(n: Any) -> str:
            """Return a number of the postfix as text."""
            return value_text(n, ".3f") if isinstance(n, float) else str(n)

    return Tqdm


def _fitting(bar: Any) -> str:
    """Return as many of a bar's metrics as its line has room for, and how many are left out: no name is cut."""
    facts = bar.format_dict
    texts = str(facts["postfix"]).split(", ")
    if not facts["ncols"]:
        return ", ".join(texts)
    # Without a width the bar itself takes ten columns, and one is the least that it needs.
    room = facts["ncols"] - len(bar.format_meter(**{**facts, "ncols": None, "postfix": ""})) + 9
    for count in range(len(texts), -1, -1):
        kept = texts[:count] + ([f"+{len(texts) - count} more"] if count < len(texts) else [])
        if len(shown := ", ".join(kept)) + 2 <= room:
            return shown
    return ""


def __getattr__(name: str) -> Any:
    if name == "Tqdm":
        return _tqdm()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _bar(name: str, doc: str) -> Any:
    """Return a property of a bar, the closed one after its loop, which is an error before there is one."""

    def get(self: TQDMProgressBar) -> Any:
        open_one = getattr(self, name)
        if (found := self._closed.get(name) if open_one is None else open_one) is None:
            raise TypeError(f"{type(self).__name__}.{name.lstrip('_')}: there is no such bar before its loop begins.")
        return found

    return property(get, lambda self, bar: setattr(self, name, bar), doc=doc)


class TQDMProgressBar(ProgressBar):
    """Bars of tqdm: one of the epoch, one inside it while validation runs, and one for each other loop.

    Override ``init_train_tqdm`` and its like for other bars, or ``get_metrics`` for what they show. A terminal is
    drawn ten times a second at most, a file each ten seconds.

    Args:
        refresh_rate: After how many batches a bar may be drawn; 0 shows nothing.
        process_position: How many lines below the cursor the bars begin, for several programs on one screen.
        leave: Whether each epoch's bar stays on the screen; else a line of text does.

    Raises:
        ConfigError: If the rate is negative.
        MissingPackageError: If tqdm is not installed.

    Example:
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import TQDMProgressBar
        >>> class Bar(TQDMProgressBar):
        ...     def init_train_tqdm(self):
        ...         bar = super().init_train_tqdm()
        ...         bar.ncols = 90
        ...         return bar
        >>> trainer = Trainer(callbacks=[Bar(refresh_rate=10)])
    """

    #: The form of a bar, in tqdm's words.
    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"

    _train_progress_bar: Any = None
    _val_progress_bar: Any = None
    _test_progress_bar: Any = None
    _predict_progress_bar: Any = None
    _drawn = _began = _run_began = 0.0
    _done = _eval_done = 0
    _total = math.inf
    _title, _evaluating = "", "_val_progress_bar"
    _interval = _SECONDS[Screen.LINES]

    train_progress_bar = _bar("_train_progress_bar", "Bar of the training epoch.")
    val_progress_bar = _bar("_val_progress_bar", "Bar of validation, and of the sanity check.")
    test_progress_bar = _bar("_test_progress_bar", "Bar of test.")
    predict_progress_bar = _bar("_predict_progress_bar", "Bar of prediction.")

    def __init__(self, refresh_rate: int = 1, process_position: int = 0, leave: bool = False) -> None:
        if refresh_rate < 0:
            raise ConfigError(Problem(f"TQDMProgressBar(refresh_rate={refresh_rate})", "must be 0 (off) or more"))
        _tqdm()
        self._refresh_rate, self._process_position, self._leave = refresh_rate, process_position, leave
        self._clock = time.monotonic
        self._closed: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), **dict.fromkeys(_BARS), "_closed": {}}

    @property
    def refresh_rate(self) -> int:
        """Return after how many batches a bar may be drawn."""
        return self._refresh_rate

    @property
    def process_position(self) -> int:
        """Return how many lines below the cursor the bars begin."""
        return self._process_position

    @property
    def is_enabled(self) -> bool:
        """Return whether the bars are shown."""
        return self._is_enabled and self._refresh_rate > 0

    def disable(self) -> None:
        """Hide the bars."""
        super().disable()
        self._close(*_BARS)

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bars; takes what ``print`` takes."""
        if kwargs or not self._opened():
            super().print(*args, sep=sep, **kwargs)
        else:
            self._safely(_tqdm().write, sep.join(map(str, args)), file=sys.stdout)

    # Bars

    def init_sanity_tqdm(self) -> Any:
        """Return the bar of the sanity check; override it for another one."""
        return self._new(self.sanity_check_description, leave=False)

    def init_train_tqdm(self) -> Any:
        """Return the bar of training; override it for another one."""
        return self._new(self.train_description, leave=self._leave)

    def init_validation_tqdm(self) -> Any:
        """Return the bar of validation; override it for another one."""
        return self._new(self.validation_description, leave=False, below=self.trainer.state.fn == TrainerFn.FITTING)

    def init_test_tqdm(self) -> Any:
        """Return the bar of test; override it for another one."""
        return self._new(self.test_description, leave=self._leave)

    def init_predict_tqdm(self) -> Any:
        """Return the bar of prediction; override it for another one."""
        return self._new(self.predict_description, leave=self._leave)

    def _new(self, title: str, leave: bool, below: bool = False) -> Any:
        return _tqdm()(
            desc=title,
            # In a file there is no line below: what moves the cursor would only be seen as signs.
            position=2 * self._process_position + (below and detect() is not Screen.LINES),
            disable=self.is_disabled,
            leave=leave,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT,
        )

    # Training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Note the trainer and how often the screen is drawn."""
        super().setup(trainer, pl_module, stage)
        self._interval = _SECONDS[detect()]

    # Subclasses hand on only what they need of a hook's arguments: none, or the trainer alone.

    def on_train_start(self, *_: Any) -> None:
        """Make the bar; a run that is resumed inside an epoch begins there."""
        trainer = self.trainer
        self._run_began = self._began = self._clock()
        self._done = trainer.batches_done
        self._open("_train_progress_bar", self.init_train_tqdm)
        if self._done:
            self._restart(trainer, self._done)

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Begin the epoch's bar."""
        if self._leave and self._train_progress_bar is None:
            self._open("_train_progress_bar", self.init_train_tqdm)
        self._began, self._done = self._clock(), 0
        self._restart(trainer)

    def _restart(self, trainer: Trainer, done: int = 0) -> None:
        bar, total = self._train_progress_bar, self.total_train_batches
        if bar is not None:
            self._safely(bar.reset, int(total) if math.isfinite(total) else None)
            bar.initial = bar.n = done
            self._safely(bar.set_description, self._epoch_title(trainer))

    def _epoch_title(self, trainer: Trainer) -> str:
        last = "" if trainer.max_epochs in (None, -1) else f"/{max(trainer.max_epochs - 1, 0)}"
        return f"{self.train_description} {trainer.current_epoch}{last}"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, if it is time."""
        self._done = done = batch_idx + 1
        if self._is_due(done):
            self._draw(self._train_progress_bar, done, self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the epoch's last view, or write its line."""
        if self.is_disabled:
            return
        metrics = self.get_metrics(trainer, pl_module)
        self._draw(self._train_progress_bar, self._done, metrics)
        if self._leave:
            self._close("_train_progress_bar")
        else:
            total = self.total_train_batches
            self._write_ended(self._epoch_title(trainer), self._done, total, self._began, metrics)

    def on_train_end(self, *_: Any) -> None:
        """Close the bar, and write how long all took, if anything was trained."""
        self._close("_train_progress_bar")
        if self._done and self.is_enabled:
            self.print(f"Training took {taken_text(self._clock() - self._run_began)}.")

    # Evaluation and prediction

    def on_sanity_check_start(self, *_: Any) -> None:
        """Make the bar."""
        self._begin("_val_progress_bar", self.init_sanity_tqdm)

    def on_sanity_check_end(self, *_: Any) -> None:
        """Close the bar."""
        self._close("_val_progress_bar")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the bar, below the epoch's if there is one."""
        if not trainer.sanity_checking:
            self._draw(self._train_progress_bar, self._done)
            self._begin("_val_progress_bar", self.init_validation_tqdm)
        self._size(self.validation_description, self.total_val_batches)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the bar."""
        self._begin("_test_progress_bar", self.init_test_tqdm)
        self._size(self.test_description, self.total_test_batches)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the bar."""
        self._begin("_predict_progress_bar", self.init_predict_tqdm)
        self._size(self.predict_description, self.total_predict_batches)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw, if it is time."""
        self._eval_done += 1
        if self._is_due(self._eval_done):
            self._draw(getattr(self, self._evaluating), self._eval_done)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar; what was logged is shown in the epoch's, or in a line of its own where there is none."""
        if trainer.sanity_checking:
            return
        inside = trainer.state.fn == TrainerFn.FITTING
        metrics = self.get_metrics(trainer, pl_module) if self.is_enabled else {}
        if inside:
            self._draw(self._train_progress_bar, self._done, metrics)
        else:
            self._draw(getattr(self, self._evaluating), self._eval_done)
        self._close(self._evaluating)
        if self.is_enabled and not (inside or self._leave):
            self._write_ended(self._title, self._eval_done, self._total, self._began, metrics)

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bars before the error is shown."""
        self._close(*_BARS)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the bars."""
        self._close(*_BARS)

    # What all bars share

    def _begin(self, name: str, make: Callable[[], Any]) -> None:
        """Begin an evaluation, whose bar is the one of that name."""
        self._evaluating, self._eval_done, self._drawn = name, 0, 0.0
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._began = self._clock()
        self._open(name, make)

    def _open(self, name: str, make: Callable[[], Any]) -> None:
        setattr(self, name, self._safely(make))

    def _size(self, title: str, total: float) -> None:
        """Give the bar of the evaluation its length."""
        self._title, self._total = title, total
        bar = getattr(self, self._evaluating)
        if bar is not None:
            self._safely(bar.reset, int(total) if math.isfinite(total) else None)

    def _is_due(self, done: int) -> bool:
        rate = self._refresh_rate
        return bool(rate) and self._is_enabled and done % rate == 0 and self._clock() - self._drawn >= self._interval

    def _draw(self, bar: Any, done: int, metrics: dict[str, Any] | None = None) -> None:
        if bar is None or bar.disable:
            return
        self._drawn = self._clock()
        bar.n = done
        if metrics:
            self._safely(bar.set_postfix, metrics, refresh=False)
            if detect() is Screen.TERMINAL and bar.postfix:
                bar.postfix = _fitting(bar)
        self._safely(bar.refresh)

    def _write_ended(self, title: str, done: int, total: float, began: float, metrics: dict[str, Any]) -> None:
        size = int(total) if math.isfinite(total) else None
        view = View(title, done, size, self._clock() - began, metrics=metrics)
        if detect() is Screen.TERMINAL:
            self.print(ended_text(view, metrics_texts(view.kept), get_terminal_size().columns, 3))
        else:
            self.print(line(view, finished=True))

    def _opened(self) -> bool:
        bars = (getattr(self, name) for name in _BARS)
        return any(bar is not None and not bar.disable for bar in bars)

    def _close(self, *names: str) -> None:
        for name in names:
            bar = getattr(self, name)
            setattr(self, name, None)
            if bar is not None:
                self._closed[name] = bar
                self._safely(bar.close)

    def _safely(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Draw or write; a screen that cannot take it ends the bars, not the run."""
        try:
            return act(*args, **kwargs)
        except (OSError, ValueError) as error:
            self._is_enabled = False
            for name in _BARS:
                setattr(self, name, None)
            warn(f"{type(self).__name__}: {type(error).__name__}: {error}. The bars are off from now on.")
            return None
