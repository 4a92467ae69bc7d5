"""Calls to an MLflow server: made once, in bounded time, an outage apart from a refusal."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from typing import Any
from urllib.parse import unquote

from lt_interface import ConfigError, MisconfigurationException, Problem

__all__ = ["ask", "calling", "default_uri", "make_client", "redacted", "without_secret"]

# The address, which may hold a password, is not to be printed; bars of its own would break the trainer's.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": 0,
    "MLFLOW_HTTP_REQUEST_TIMEOUT": 10,
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": True,
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": False,
}
_SECRET = re.compile(r"(?i)([?&](?:\w*token|password|secret|\w*key)=)[^&\s'\"]+")
_own = threading.local()
_guard = threading.Lock()
_shared: set[str] = set()  # the settings that threads may have their own value of
_WAYS = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment."
# Of these the request itself is the cause; all else may go away.
_REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"}
_REFUSED |= {"RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "NOT_FOUND"}


def redacted(text: str) -> str:
    """Return a text whose URIs hold no user and password, and no token among their arguments."""
    return _SECRET.sub(r"\1***", re.sub(r"(?<=://)[^\s'\"]*@", "***@", text))


def without_secret(uri: str) -> str:
    """Return a URI without user, password and tokens: with ``***`` in their place."""
    scheme, mark, rest = uri.partition("://")
    place = rest.partition("/")[0]
    port = place.partition(":")[2]
    if "@" in place:
        rest = f"***@{place.rpartition('@')[2]}{rest[len(place) :]}"
    elif "@" in rest and port and not port.isdigit():  # a password with a slash is what comes before this
        rest = f"***@{rest.rpartition('@')[2]}"
    return _SECRET.sub(r"\1***", f"{scheme}{mark}{rest}")


@contextmanager
def calling(timeout: float = 10.0) -> Iterator[None]:
    """Make one attempt at each call inside, and give it so many seconds.

    MLflow itself tries eight times, with pauses that grow to minutes, and would send a batch again whose reply
    was lost, without asking. It looks these settings up at each call; what it finds is ours only in this
    thread and inside of this, so that the user's own calls keep MLflow's patience.

    Raises:
        ConnectionError: If the server is away, overloaded or wants other credentials.
        ValueError: If it refuses what it was given.
    """
    _let_threads_differ()
    before = getattr(_own, "settings", None)
    _own.settings = {**_SETTINGS, "MLFLOW_HTTP_REQUEST_TIMEOUT": max(1, round(timeout))}
    try:
        yield
    except Exception as error:
        # A traceback shows the cause: not one that names a password.
        raise _meant(error) from (error if redacted(str(error)) == str(error) else None)
    finally:
        _own.settings = before


def ask(call: Callable[..., Any], *args: Any, timeout: float = 10.0, **kwargs: Any) -> Any:
    """Return the answer of one call, made as inside of `calling`."""
    with calling(timeout):
        return call(*args, **kwargs)


def _let_threads_differ() -> None:
    """Make MLflow's settings answer with this thread's value where it has one, once a process."""
    from mlflow import environment_variables

    with _guard:
        for name in _SETTINGS.keys() - _shared:
            _shared.add(name)
            variable = getattr(environment_variables, name, None)
            if variable is not None:
                variable.get = partial(_value, name, variable.get)


def _value(name: str, shared: Callable[[], Any]) -> Any:
    settings = getattr(_own, "settings", None)
    return shared() if settings is None else settings[name]


def _meant(error: Exception) -> Exception:
    """Return a ValueError for what will never be taken, else a ConnectionError."""
    if isinstance(error, (ValueError, TypeError, KeyError, OSError)) and not hasattr(error, "error_code"):
        is_outage = isinstance(error, OSError) or type(error).__module__.startswith(("requests", "urllib3"))
        return ConnectionError(redacted(str(error))) if is_outage else error
    code = str(getattr(error, "error_code", ""))
    status = _status_of(error)
    text = redacted(" ".join(str(error).split()))[:500]
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED") or status in (401, 403):
        return ConnectionError(f"the server wants other credentials ({text}). {_WAYS}")
    if code in _REFUSED and (status is None or status in range(400, 500)) and status not in (408, 429):
        return ValueError(text)
    return ConnectionError(text)


def _status_of(error: Exception) -> int | None:
    """Return the HTTP status in the text of an error of MLflow, where its code is only derived from it."""
    found = re.search(r"failed with error code (\d{3})", str(error))
    return int(found[1]) if found else None


def default_uri(save_dir: str) -> str:
    """Return the tracking URI of the environment, else a database below a folder, else the folder itself."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if find_spec("sqlalchemy") is not None:
        return f"sqlite:///{os.path.join(os.path.abspath(save_dir), 'mlflow.db')}"
    return f"file:{os.path.abspath(save_dir)}"


def make_client(uri: str) -> Any:
    """Return an MlflowClient for a URI, its folder made.

    Raises:
        ConfigError: If its folder cannot be written.
        MisconfigurationException: If MLflow has no store of that kind.
    """
    scheme = uri.partition(":")[0] if "://" in uri or uri.startswith("file:") else ""
    if scheme in ("", "file"):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # who names a folder means it
    where = f"MLFlowLogger(tracking_uri={redacted(uri)!r})"
    is_database, is_folder = uri.startswith("sqlite:///"), scheme == "file" or (not scheme and "/" in uri)
    path = unquote(uri.removeprefix("sqlite:///" if is_database else "file:").partition("?")[0])
    try:
        if is_database or is_folder:
            folder = os.path.dirname(path) if is_database else re.sub("^//+", "/", path)
            os.makedirs(folder or ".", exist_ok=True)
            if not os.access(folder or ".", os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        from mlflow.tracking import MlflowClient

        with _alone(uri):
            return MlflowClient(tracking_uri=uri)
    except OSError as error:
        if not (is_database or is_folder):
            raise
        rule = f"the {'database' if is_database else 'store'}'s folder must be writable"
        raise ConfigError(Problem(where, rule, str(error), "Give another path.")) from error
    except Exception as error:
        fix = "Write http(s)://host:port, sqlite:///path (this needs the full mlflow) or file:path."
        got = redacted(" ".join(str(error).split()))[:300].rstrip(".")
        raise MisconfigurationException(Problem(where, "MLflow must know this kind of store", got, fix)) from error


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Let one process at a time make a database's tables: MLflow itself breaks it where two do."""
    path = uri.removeprefix("sqlite:///").partition("?")[0]
    if path == uri:
        yield
        return
    try:
        import fcntl

        file = open(f"{path}.lock", "w")  # noqa: SIM115 - it is closed below
    except (ImportError, OSError):
        yield
        return
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
