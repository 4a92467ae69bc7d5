"""W&B runs of this process; one line of error for what keeps one from starting."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from lt_interface import MisconfigurationException
from lt_loggers.wandb.transaction_log import MARK, Mark, TransactionLog, mark_of

__all__ = ["FLUSH_INTERVAL", "OpenRun", "active_run", "close_idle_runs", "is_open", "open_run", "start_run"]

# How often W&B's own process writes its buffer to the transaction log, in seconds; its default is 15.
FLUSH_INTERVAL = 0.05
_STALLED = 10.0
_LAST_WRITE = 5.0
_PROMPT = 5.0  # what a user may have set it to, for `wait` to be worth it


_runs: list[OpenRun] = []
_started: weakref.WeakSet[Any] = weakref.WeakSet()  # all runs that loggers of this process started


class OpenRun:
    """Run that one or more loggers of this process write to, and what it still owes to the disk.

    Args:
        run: The ``wandb.Run``.
        owned: Whether a logger started it, and may finish it.

    Attributes:
        log: Its transaction log; None where there is none.
        is_prompt: Whether rows come into the log soon after they were sent.
        owed: The marks of the rows that were sent and not yet seen in the log.
        finalized: Whether its loggers' last ``finalize`` is the newest that they did.
        users: The loggers that write to it.
    """

    def __init__(self, run: Any, owned: bool) -> None:
        self.run = run
        self.owned = owned
        self.log = None if getattr(run, "disabled", False) else TransactionLog(run.settings.sync_file)
        # Up to 0.30, W&B's process writes when a buffer is full or the run ends, and at no other time.
        interval = float(getattr(getattr(run, "settings", None), "x_transaction_log_flush_interval", None) or 0)
        self.is_prompt = owned and 0 < interval <= _PROMPT
        self.owed: set[Mark] = set()
        self.finalized = False
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._configs = 0
        self._calls = 0
        self._is_broken = False
        self._pid = os.getpid()
        _runs.append(self)
        if owned:
            _started.add(run)

    @property
    def is_open(self) -> bool:
        """Return whether the run takes more."""
        return not self._is_broken and self._pid == os.getpid() and is_open(self.run)  # a fork has no part in it

    def next_call(self) -> int:
        """Return a number for the row of a direct call."""
        self._calls += 1
        return -self._calls

    def send(self, row: dict[str, Any], mark: int) -> None:
        """Write a row.

        Raises:
            ConnectionError: If W&B's own process has died.
        """
        row[MARK] = mark
        self.guarded(lambda: self.run.log(row))
        self.owed.add(mark_of(mark, row.get("_timestamp", 0.0)))

    def configure(self, values: dict[str, Any]) -> None:
        """Change the configuration."""
        self.guarded(lambda: self.run.config.update(values, allow_val_change=True))
        self._configs += 1

    def guarded(self, call: Callable[[], Any]) -> None:
        """Make a call to the run, and note the death of W&B's own process."""
        try:
            call()
        except ConnectionError:
            self._break()
            raise

    def wait(self, timeout: float) -> None:
        """Return when all that was sent is in the transaction log, if that is soon.

        Raises:
            TimeoutError: If nothing more comes for ``timeout`` seconds, or for ten; the run is given up then.
        """
        if self.log is None or not self.is_open:
            self.owed.clear()
            return
        if not self.is_prompt:
            self.log.refresh()
            self.owed -= self.log.marks.keys()
            return
        end = time.monotonic() + min(timeout, _STALLED)
        pause, read = FLUSH_INTERVAL / 4, self.log.read_to
        while self.owed or self.log.configs < self._configs:
            self.log.refresh()
            self.owed -= self.log.marks.keys()
            if self.log.read_to != read:
                end, read = time.monotonic() + min(timeout, _STALLED), self.log.read_to
            if not self.owed and self.log.configs >= self._configs:
                return
            if time.monotonic() > end:
                # After an error, such as of a full disk, W&B's process writes no more to this log, ever.
                self._break()
                raise TimeoutError(
                    f"WandbLogger: W&B's own process wrote too little in {min(timeout, _STALLED):g} s: "
                    f"{len(self.owed)} rows are not in {self.log.path} yet."
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def close(self, exit_code: int) -> None:
        """Finish the run if a logger started it."""
        if not self.owned:
            return
        if self in _runs:
            _runs.remove(self)
        if self.is_open:
            with contextlib.suppress(ConnectionError):
                self.guarded(lambda: self.run.finish(exit_code=exit_code))
                self._wait_for_the_end()
        if self.log is not None:
            self.owed -= self.log.marks.keys()

    def _wait_for_the_end(self) -> None:
        """Return when the run's end is in the log: W&B's process may write it a moment after `finish` has returned."""
        end = time.monotonic() + _LAST_WRITE
        while self.log is not None and not self.log.is_ended and time.monotonic() < end:
            self.log.refresh()
            time.sleep(FLUSH_INTERVAL / 4)

    def _break(self) -> None:
        """Let the next run start a new process of W&B's."""
        import wandb

        for other in list(_runs):  # all lived in that process
            other._is_broken = True
            _runs.remove(other)
        process = getattr(getattr(getattr(wandb.setup(), "_connection", None), "_proc", None), "_process", None)
        with contextlib.suppress(Exception):
            wandb.teardown(exit_code=1)
        if process is not None:  # one that does not answer must not write on beside its successor
            process.kill()
            process.wait()


def active_run() -> Any:
    """Return the process's active run that no logger started, or None; imports nothing."""
    run = getattr(sys.modules.get("wandb"), "run", None)
    return run if is_open(run) and run not in _started else None


def open_run(run_id: str | None) -> OpenRun | None:
    """Return what a logger of this process has open under an id."""
    return next((entry for entry in _runs if entry.is_open and entry.run.id == run_id), None)


def close_idle_runs() -> None:
    """Finish the runs that were left open for more and got none."""
    for entry in list(_runs):
        if not entry.is_open:
            _runs.remove(entry)
        elif entry.finalized or not len(entry.users):
            entry.close(0)


def is_open(run: Any) -> bool:
    """Return whether a ``wandb.Run`` is one and takes more."""
    return run is not None and not getattr(run, "_is_finished", False)


def start_run(options: dict[str, Any], timeout: float, wait_for_uploads: bool) -> tuple[Any, str]:
    """Call ``wandb.init``; without a network, start the run offline.

    Args:
        options: The arguments of ``wandb.init``.
        timeout: Seconds for the server's answer.
        wait_for_uploads: Whether the end of the run waits for uploads of any length.

    Returns:
        The run, and why the server could not be reached, empty where it was.

    Raises:
        MisconfigurationException: If there is no API key, or the server refuses it or what is asked for.
        ConnectionError: If W&B's own process does not work.
    """
    import wandb

    if active_run() is not None or any(entry.is_open for entry in _runs):
        options = {"reinit": "create_new", **options}
    limits: dict[str, Any] = {"init_timeout": timeout, "x_transaction_log_flush_interval": FLUSH_INTERVAL}
    if not wait_for_uploads:
        limits["finish_timeout"] = timeout
    settings = options.get("settings")
    wanted = {"silent", "quiet"} & {*getattr(settings, "model_fields_set", settings or ())}
    if silent := not (wanted or {"WANDB_SILENT", "WANDB_QUIET"} & os.environ.keys()):
        limits["silent"] = True
    options = {**options, "settings": _settings(settings, limits)}
    try:
        run = _init(options)
        if silent and not getattr(run, "disabled", False):
            _say_where(run)
        return run, ""
    except wandb.errors.AuthenticationError as error:
        raise MisconfigurationException(_KEY.format("the server refuses the API key")) from error
    except wandb.errors.UsageError as error:
        if "api key" in str(error).lower() or "api_key" in str(error).lower():
            raise MisconfigurationException(_KEY.format("there is no API key")) from None
        raise MisconfigurationException(f"WandbLogger: wandb.init refuses its arguments. {error}") from error
    except (wandb.errors.CommError, TimeoutError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        refusal = re.search(r"\berror (401|403|404)\b", reason)
        if refusal and refusal[1] == "401":
            raise MisconfigurationException(_KEY.format("the server refuses the API key")) from error
        if refusal:
            raise MisconfigurationException(
                f"WandbLogger: the server refuses this run. {reason}. Check entity and project, and whose key this is."
            ) from error
    except wandb.errors.Error as error:
        raise ConnectionError(f"WandbLogger: wandb.init failed. {error}") from error
    _free(reason)
    return _init({**options, "mode": "offline"}), reason


def _say_where(run: Any) -> None:
    """Write the one line that a user needs: the run's address, or the command that sends it there later."""
    folder = os.path.dirname(run.settings.sync_file)
    here = f"the run is kept in {folder}. Send it later with: wandb sync {folder}"
    print(f"W&B: {here if run.offline else run.url or folder}", file=sys.stderr, flush=True)


def _init(options: Mapping[str, Any]) -> Any:
    """Call ``wandb.init``; take over the id from a dead process that shared W&B's own process with this one."""
    import wandb

    for attempt in (1, 2):
        try:
            return wandb.init(**options)
        except Exception as error:
            if type(error).__name__ != "ServerResponseError":
                raise
            if attempt == 2 or "in use" not in str(error):
                raise ConnectionError(f"WandbLogger: wandb.init failed. {error}") from error
            with contextlib.suppress(Exception):
                wandb.setup().ensure_service().inform_finish(options["id"])
    raise AssertionError


_KEY = (
    "WandbLogger: {}. Put one into the environment variable WANDB_API_KEY, or run `wandb login` once; "
    "WandbLogger(offline=True) logs without one."
)


def _free(reason: str) -> None:
    """End W&B's process after a start that failed: it would go on trying, with the run's id in use.

    Runs of other loggers are finished with it; they go on at their next use.
    """
    import wandb

    if active_run() is not None:  # the user's own
        raise ConnectionError(f"WandbLogger: the W&B server could not be reached. {reason}")
    for entry in list(_runs):
        entry.close(0)
    with contextlib.suppress(ConnectionError):
        wandb.teardown()


def _settings(given: Any, limits: Mapping[str, Any]) -> Any:
    """Return the user's settings with ours where the user's say nothing and this wandb knows them."""
    import wandb

    known = getattr(wandb.Settings, "model_fields", None)
    ours = {key: value for key, value in limits.items() if known is None or key in known}
    if given is None or isinstance(given, Mapping):
        return wandb.Settings(**{**ours, **(given or {})})
    mine = given.model_copy()
    for key, value in ours.items():
        if key not in given.model_fields_set:
            setattr(mine, key, value)
    return mine
