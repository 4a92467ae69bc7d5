"""Show progress where the user looks: bars on a terminal, a block in a notebook, else plain lines."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lt_core.callbacks.progress.forecast import Forecast, batches_left, taken_text
from lt_core.callbacks.progress.lines import PlainLines
from lt_core.callbacks.progress.progress_bar import ProgressBar
from lt_core.callbacks.progress.screen import Screen, detect
from lt_core.callbacks.progress.view import Display, View
from lt_core.callbacks.timer import Timer
from lt_core.notices import warn
from lt_core.state.progress import TrainerFn
from lt_interface.errors import ConfigError, Problem

if TYPE_CHECKING:
    from lt_core.module import LightningModule
    from lt_core.trainer import Trainer

__all__ = ["RichProgressBar", "RichProgressBarTheme"]


@dataclass(frozen=True)
class RichProgressBarTheme:
    """Styles of a bar's columns, in rich's words, and the format of numbers."""

    description: str = ""
    progress_bar: str = "#6206E0"
    progress_bar_finished: str = "#6206E0"
    progress_bar_pulse: str = "#6206E0"
    batch_progress: str = ""
    time: str = "dim"
    processing_speed: str = "dim underline"
    metrics: str = "italic"
    metrics_text_delimiter: str = " "
    metrics_format: str = ".3f"


class RichProgressBar(ProgressBar):
    """Bar of the run's progress, the time that epoch and run will still take, and the metrics.

    A terminal gets bars of three lines at most, ten times a second at most, and a line for each
    finished epoch; a notebook a block that is replaced in place, with a row for each; a file or a
    pipe one plain line each ten seconds at most and one an epoch. Between drawings a batch costs
    one look at the clock.

    Args:
        refresh_rate: 0 shows nothing. Any other value shows the bar: drawing goes by time, not by batches.
        leave: What a finished epoch leaves on a terminal and in a notebook: True its bar, False nothing,
            so that only the last one's bar stays; a line if None.
        theme: Styles and formats.
        console_kwargs: Arguments of ``rich.console.Console``.
        line_interval: The least seconds between two plain lines.

    Raises:
        ConfigError: If the rate is negative.
    """

    def __init__(
        self,
        refresh_rate: int = 100,
        leave: bool | None = None,
        theme: RichProgressBarTheme | None = None,
        console_kwargs: dict[str, Any] | None = None,
        *,
        line_interval: float = 10.0,
    ) -> None:
        if refresh_rate < 0:
            raise ConfigError(Problem(f"RichProgressBar(refresh_rate={refresh_rate})", "must be 0 (off) or more"))
        self.refresh_rate = refresh_rate
        self.leave = leave
        self.theme = theme or RichProgressBarTheme()
        self._console_kwargs = console_kwargs or {}
        self._line_interval = line_interval
        self._display: Display | None = None
        self._clock = time.monotonic
        self._due = math.inf
        self._done = 0
        self._began = self._run_began = 0.0
        self._forecast = Forecast(0.0)
        self._eval_done = 0
        self._eval_began = 0.0
        self._eval_title = ""

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_display": None, "_due": math.inf}

    @property
    def is_enabled(self) -> bool:
        """Return whether the bar is shown."""
        return self._is_enabled and self.refresh_rate > 0

    def enable(self) -> None:
        """Show the bar."""
        super().enable()
        self._due = 0.0

    def disable(self) -> None:
        """Hide the bar."""
        super().disable()
        self._due = math.inf
        self._close()

    def print(self, *args: Any, sep: str = " ", **kwargs: Any) -> None:
        """Print above the bar; takes what ``print`` takes."""
        if self._display is None or kwargs:
            super().print(*args, sep=sep, **kwargs)
        else:
            self._on_display("write", sep.join(map(str, args)))

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Return the columns of the terminal's bar, each a ``rich.progress.ProgressColumn``; override it for others.

        Each task has the fields counts, times, speed and metrics, ready as text.

        Args:
            trainer: The trainer whose run is shown.
        """
        from lt_core.callbacks.progress.rich_display import default_columns

        return list(default_columns(self.theme))

    def _open(self, trainer: Trainer) -> None:
        """Make the display that fits the screen, once a run."""
        if self.is_disabled or self._display is not None:
            return
        screen = detect(self._console_kwargs.get("file"))
        if self._console_kwargs.get("force_terminal"):
            screen = Screen.TERMINAL
        if screen is Screen.TERMINAL:
            from lt_core.callbacks.progress.rich_display import RichDisplay

            self._display = RichDisplay(self.configure_columns(trainer), self.theme, self.leave, self._console_kwargs)
        elif screen is Screen.NOTEBOOK:
            from lt_core.callbacks.progress.notebook import NotebookDisplay

            self._display = NotebookDisplay(self.leave, self.theme.metrics_format)
        else:
            self._display = PlainLines(self._line_interval, number=self.theme.metrics_format)
        self._rest()

    def _close(self) -> None:
        if self._display is not None:
            self._on_display("close")
            self._display = None
        self._due = math.inf

    def _on_display(self, act: str, *values: Any) -> None:
        """Draw, write or close; a screen that cannot take it ends the bar, not the run."""
        try:
            getattr(self._display, act)(*values)
        except Exception as error:
            self._display = PlainLines(self._line_interval, number=self.theme.metrics_format)
            warn(f"{type(self).__name__}: {type(error).__name__}: {error}. Progress goes on as plain lines.")

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure; a run that is resumed inside an epoch begins there."""
        self._done, self._began = trainer.batches_done, self._clock()
        self._run_began = self._began
        self._forecast = Forecast(self._began, self._done)
        self._open(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch's bar; it is there before the first batch is done, unless epochs are over in a moment."""
        now = self._clock()
        shows = self._began == self._run_began or now - self._began > 0.5
        self._done, self._began = 0, now
        self._forecast.new_epoch(now)
        if shows and self._display is not None:
            self._on_display("show", self._train_view(trainer, pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, if it is time."""
        self._done = batch_idx + 1
        if self._clock() >= self._due:
            self._draw(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the epoch's last view."""
        self._forecast.away(self._done, self._clock())
        if self._display is not None:
            self._on_display("finish", self._train_view(trainer, pl_module))
            self._rest()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the screen back, and write how long all took, if anything was trained."""
        if self._display is not None and self._forecast.pace.seconds is not None:
            self._on_display("close")
            self._on_display("write", f"Training took {taken_text(self._clock() - self._run_began)}.")
        self._close()

    # Evaluation and prediction

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar, inside the epoch's if there is one."""
        title = self.sanity_check_description if trainer.sanity_checking else self.validation_description
        self._begin_evaluation(trainer, title)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar."""
        self._begin_evaluation(trainer, self.test_description)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a bar."""
        self._begin_evaluation(trainer, self.predict_description)

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
        if self._clock() >= self._due:
            self._draw(trainer, pl_module, evaluating=True)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the bar."""
        if self._is_inside_epoch(trainer):
            self._forecast.back(self._clock())
        elif not trainer.sanity_checking and self._display is not None:
            self._on_display("finish", self._eval_view(trainer, pl_module))
        if trainer.state.fn != TrainerFn.FITTING:
            self._close()

    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the screen back before the error is shown."""
        self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the screen back."""
        self._close()

    def _begin_evaluation(self, trainer: Trainer, title: str) -> None:
        self._eval_done, self._eval_began, self._eval_title = 0, self._clock(), title
        if self._is_inside_epoch(trainer):
            self._forecast.away(self._done, self._eval_began)
        self._open(trainer)

    # Views

    def _is_inside_epoch(self, trainer: Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking

    def _rest(self) -> None:
        self._due = math.inf if self._display is None else self._clock() + self._display.interval

    def _draw(self, trainer: Trainer, pl_module: LightningModule, evaluating: bool = False) -> None:
        """Draw what runs: training, an evaluation, or an evaluation inside a training epoch."""
        self._open(trainer)
        if self._display is None:
            self._due = math.inf
            return
        view = self._eval_view(trainer, pl_module) if evaluating else None
        if view is None or self._is_inside_epoch(trainer):
            view = self._train_view(trainer, pl_module, view)
        self._on_display("show", view)
        self._rest()

    def _train_view(self, trainer: Trainer, pl_module: LightningModule, inner: View | None = None) -> View:
        now, forecast, total = self._clock(), self._forecast, self.total_train_batches
        if inner is None and forecast.is_running:
            forecast.batches(self._done, now)
        last = "" if trainer.max_epochs in (None, -1) else f"/{max(trainer.max_epochs - 1, 0)}"
        left = batches_left(
            done=self._done,
            per_epoch=total,
            epoch=trainer.current_epoch,
            max_epochs=trainer.max_epochs,
            step=trainer.global_step,
            max_steps=trainer.max_steps,
            accumulate=trainer.accumulate_grad_batches,
        )
        run_left = forecast.run_left(left)
        if run_left is not None and inner is not None:
            run_left += inner.left or 0.0
        return View(
            title=f"{self.train_description} {trainer.current_epoch}{last}",
            done=self._done,
            total=int(total) if math.isfinite(total) else None,
            elapsed=now - self._began,
            pace=forecast.pace.seconds,
            left=forecast.epoch_left(min(total - self._done, left)),
            run_left=_capped(run_left, trainer),
            metrics=self.get_metrics(trainer, pl_module),
            inner=inner,
        )

    def _eval_total(self, trainer: Trainer) -> float:
        if trainer.state.fn == TrainerFn.TESTING:
            return self.total_test_batches
        return self.total_predict_batches if trainer.state.fn == TrainerFn.PREDICTING else self.total_val_batches

    def _eval_view(self, trainer: Trainer, pl_module: LightningModule) -> View:
        total, elapsed = self._eval_total(trainer), self._clock() - self._eval_began
        pace = elapsed / self._eval_done if self._eval_done else None
        is_known = math.isfinite(total)
        inside = self._is_inside_epoch(trainer) or trainer.sanity_checking
        return View(
            title=self._eval_title,
            done=self._eval_done,
            total=int(total) if is_known else None,
            elapsed=elapsed,
            pace=pace,
            left=(total - self._eval_done) * pace if is_known and pace is not None else None,
            metrics={} if inside else self.get_metrics(trainer, pl_module),
        )


def _capped(left: float | None, trainer: Trainer) -> float | None:
    """Return the run's time, at most what a Timer leaves of it."""
    budgets = [c.time_remaining() for c in trainer.callbacks if isinstance(c, Timer)]
    known = [t for t in (left, *budgets) if t is not None]
    return max(min(known), 0.0) if known else None
