"""Checkpoint formats: how a tree of values becomes a file and comes back."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from lt_interface.errors import Problem

__all__ = ["CheckpointIO", "KeepsObjects", "RefusesValues", "SavesItself"]


@runtime_checkable
class CheckpointIO(Protocol):
    """Format in which checkpoints are written and read.

    A save is atomic and durable: a reader sees the old file or the new one, whatever
    moment the process dies at. Reading never runs code found in the file.

    Attributes:
        collective: Whether every rank must call ``save`` and ``load``; where it is False, rank 0 alone saves.

    Example:
        A format for trees without tensors, which leaves out the checksum that a real one needs:

        >>> import json, os
        >>> from lt_interface.errors import CheckpointError
        >>> class JsonIO:
        ...     collective = False
        ...     def save(self, tree, path):
        ...         with open(path + ".tmp", "w") as file:
        ...             json.dump(tree, file)
        ...             file.flush()
        ...             os.fsync(file.fileno())
        ...         os.replace(path + ".tmp", path)
        ...     def load(self, path):
        ...         try:
        ...             with open(path) as file:
        ...                 return json.load(file)
        ...         except (OSError, ValueError) as error:
        ...             raise CheckpointError(f"{path}: this must be a JSON checkpoint. Got {error}.") from error
        ...     def peek(self, path):
        ...         return {"progress": self.load(path)["progress"]}
        ...     def verify(self, path):
        ...         self.load(path)
        ...     def remove(self, path):
        ...         if os.path.exists(path):
        ...             os.remove(path)
        ...     def wait(self):
        ...         pass
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     io, path = JsonIO(), os.path.join(folder, "a.ckpt")
        ...     io.save({"progress": {"step": 10}, "epoch": 1}, path)
        ...     io.load(path)["epoch"], io.peek(path)
        (1, {'progress': {'step': 10}})
    """

    collective: bool

    def save(self, tree: dict[str, Any], path: str) -> None:
        """Write a tree, or take a snapshot of it and write that in the background.

        The core calls it between two batches. What changes in the tree after the call must not reach the file.

        Args:
            tree: Nested dicts, lists and tuples of plain values and tensors; it holds the checkpoint of one run.
            path: The file or folder to make or replace; the folder around it exists.

        Raises:
            OSError: If the disk refuses; what was there before stays. A background save raises in ``wait``.
            CheckpointError: If a value of the tree cannot be kept; the message has its path.
        """

    def load(self, path: str) -> dict[str, Any]:
        """Read a tree.

        Args:
            path: What ``save`` was given.

        Returns:
            The tree, each value with the type, order and bits that it was saved with, its tensors on the CPU.

        Raises:
            CheckpointError: If the file is missing, damaged, unsafe or too new.
        """

    def peek(self, path: str) -> dict[str, Any]:
        """Return the header alone: versions and ``progress``; no tensor is read.

        It may also have ``run`` (the tree's ``lt_run``), ``keys`` (of the tree) and ``parameters`` (a signature of the
        weights): then the search for the newest run distinguishes runs, files with weights only, and other models.

        Args:
            path: What ``save`` was given.

        Raises:
            CheckpointError: If the file is missing, or its header is damaged or too new.
        """

    def verify(self, path: str) -> None:
        """Check every byte against its checksum.

        Args:
            path: What ``save`` was given.

        Raises:
            CheckpointError: If the file is missing or a byte is wrong.
        """

    def remove(self, path: str) -> None:
        """Delete a checkpoint; a missing one is no error.

        Args:
            path: What ``save`` was given.

        Raises:
            OSError: If the disk refuses.
        """

    def wait(self) -> None:
        """Return when every save so far is durable; the core calls it before a run ends.

        Raises:
            OSError: If the disk refused one of them; raised once.
            CheckpointError: If a value of one of them cannot be kept; raised once.
        """


@runtime_checkable
class RefusesValues(Protocol):
    """Checkpoint format that cannot keep every value, and says which.

    The core asks it before the first batch, part by part, and when `CheckpointIO.save` raised a CheckpointError: the
    checkpoint is then written without what is refused, and the run ends with an error that lists it.

    Example:
        >>> class NumbersIO:
        ...     def without_refused(self, tree, where="checkpoint"):
        ...         kept = {key: value for key, value in tree.items() if isinstance(value, (int, float))}
        ...         bad = [Problem(f"{where}[{k!r}]", "this must be a number") for k in tree if k not in kept]
        ...         return kept, bad
        >>> NumbersIO().without_refused({"epoch": 1, "note": "late"})[0]
        {'epoch': 1}
        >>> isinstance(NumbersIO(), RefusesValues)
        True
    """

    def without_refused(self, tree: dict[str, Any], where: str = "checkpoint") -> tuple[dict[str, Any], list[Problem]]:
        """Return the tree without the entries that cannot be kept, and a problem for each of them.

        Args:
            tree: The tree, or a part of it; it is left as it is.
            where: What it is called in the problems.

        Returns:
            The tree without them, and the problems.
        """


@runtime_checkable
class KeepsObjects(Protocol):
    """Checkpoint format that keeps objects, too, so that hyper-parameters reach it as they are.

    `CheckpointIO.load` refuses a file that holds some, since to make them runs what the file says.

    Example:
        >>> class PickleIO:
        ...     def load_trusted(self, path):
        ...         import pickle
        ...         with open(path, "rb") as file:
        ...             return pickle.load(file)
        >>> isinstance(PickleIO(), KeepsObjects)
        True
    """

    def load_trusted(self, path: str) -> dict[str, Any]:
        """Read a tree with the objects in it; the core calls it where the user wrote ``weights_only=False``.

        Args:
            path: What ``save`` was given.

        Returns:
            The tree, its tensors on the CPU.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """


@runtime_checkable
class SavesItself(Protocol):
    """Engine that writes weights and optimizer states itself, into a folder beside the rest of a checkpoint.

    The core then leaves both out of the tree, which names the folder; a file of weights alone still holds those of
    `Strategy.weights`. Every rank calls both methods. ``load`` is called once the engine is built, in evaluation too,
    where it has no optimizers. A failure of one rank is a failed save on all, and the folder is removed.

    Example:
        >>> class Partitioned:
        ...     def save(self, path):
        ...         pass
        ...     def load(self, path):
        ...         pass
        >>> isinstance(Partitioned(), SavesItself)
        True
    """

    def save(self, path: str) -> None:
        """Write this rank's part; it is durable when this returns.

        Args:
            path: A folder that exists and is empty.

        Raises:
            OSError: If the disk refuses.
        """

    def load(self, path: str) -> None:
        """Take over what ``save`` wrote.

        Args:
            path: The folder.

        Raises:
            CheckpointError: If it is of another model, or of a number of ranks that cannot be converted.
        """
