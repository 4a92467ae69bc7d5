"""Augment batches on the device, with whatever changes a batch."""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lt_core.callback import Callback
from lt_core.data.leaf import is_stateful
from lt_core.data.nested import leaves
from lt_core.data.stream import find_generators
from lt_core.state.rng import reseed_generator
from lt_core.state.stage import STAGES
from lt_interface.errors import ConfigError, MisconfigurationException, Problem, nearest, raise_problems
from lt_interface.nested import items_of, rebuilt

__all__ = ["BatchTransform"]

_WORDS = [stage.word for stage in STAGES]


class BatchTransform(Callback):
    """Callback that changes batches on the device: augmentation, mixing, normalization.

    It comes after the transfer hooks and before ``on_train_batch_start``, without gradients. What the transform draws,
    from the global generators or from ones of its own, follows from the run's seed and the batch's place in its epoch,
    and the training's own random state is left alone. So a run with it can be resumed in the middle of an epoch to the
    bit, and each rank draws for itself. Several of them change a batch in their order.

    Args:
        transform: A module, such as one of torchvision's v2 or kornia, or any function. A module is moved to the
            device, and its state is saved.
        stages: In which stages: some of ``"train"``, ``"validate"``, ``"test"`` and ``"predict"``.
        keys: What of the batch it is given: an index, a key or a field's name, or a list of those, which become as
            many arguments, and as many values are expected back. None gives it the whole batch.

    Raises:
        ConfigError: If the transform cannot be called, or a stage is none; all problems at once.

    Example:
        >>> import torch
        >>> from lt_core import Trainer
        >>> from lt_core.callbacks import BatchTransform
        >>> noise = BatchTransform(lambda x: x + 0.1 * torch.randn_like(x), keys=0)
        >>> trainer = Trainer(callbacks=[noise])
    """

    def __init__(
        self,
        transform: Callable[..., Any],
        stages: str | Collection[str] = ("train",),
        keys: int | str | Collection[int | str] | None = None,
    ) -> None:
        problems, where = [], "BatchTransform"
        if isinstance(transform, type) or not callable(transform):
            got = f"the class {transform.__name__}" if isinstance(transform, type) else repr(transform)
            fix = f"Write BatchTransform({transform.__name__}(...))." if isinstance(transform, type) else ""
            problems.append(Problem(f"{where}(transform)", "this must be a module or a function", got, fix))
        self.stages = tuple(stages) if isinstance(stages, list | tuple | set | frozenset) else (stages,)
        for stage in self.stages or ("",):
            if stage not in _WORDS:
                fix = nearest(str(stage), _WORDS) or f"Write some of {', '.join(_WORDS)}."
                problems.append(Problem(f"{where}(stages={stages!r})", "no stage of that name", repr(stage), fix))
        known = [keys] if isinstance(keys, int | str) else keys
        several = isinstance(known, Collection) and not isinstance(known, bytes) and len(known) > 0
        if known is not None and not (several and all(isinstance(key, int | str) for key in known)):
            rule, fix = "these must be indexes, keys or names", 'Write keys="image" or keys=["image", "label"].'
            problems.append(Problem(f"{where}(keys={keys!r})", rule, fix=fix))
        raise_problems(problems)
        self.stages = tuple(word for word in _WORDS if word in self.stages)
        self.transform = transform
        self._single = isinstance(keys, int | str)
        self.keys = None if keys is None else (keys,) if isinstance(keys, int | str) else tuple(keys)

    @property
    def _name(self) -> str:
        return getattr(self.transform, "__name__", type(self.transform).__name__)

    @property
    def state_key(self) -> str:
        """Return a key in which other transforms, stages or keys differ; one of its own where there is no state."""
        if not self.state_dict():
            return f"{type(self).__qualname__} {id(self)}"
        return self._generate_state_key(transform=self._name, stages=self.stages, keys=self.keys)

    def state_dict(self) -> dict[str, Any]:
        """Return the transform's own state, if it has some."""
        state = self.transform.state_dict() if is_stateful(self.transform) else None  # type: ignore[attr-defined]
        return {"transform": dict(state)} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the transform its state."""
        self.transform.load_state_dict(state_dict["transform"])  # type: ignore[attr-defined]

    def transform_for(self, stage: str, device: torch.device) -> Callable[[Any, int], Any] | None:
        """Return what changes the batches of a pass, or None in other stages.

        Args:
            stage: The stage.
            device: Where the transform computes.
        """
        if stage not in self.stages:
            return None
        parts: list[Any] = [self.transform]
        if isinstance(self.transform, nn.Module):
            parts = list(self.transform.to(device).modules())
        return partial(self._apply, f"BatchTransform({self._name}) in {stage}", find_generators(*parts))

    @torch.no_grad()
    def _apply(self, where: str, generators: list[Any], batch: Any, seed: int) -> Any:
        for number, generator in enumerate(generators, 1):
            reseed_generator(generator, (seed + number) % 2**64)
        before = _sizes(batch)
        if self.keys is None:  # what is exchanged in a dict or list of the loader's own would come again
            new = self.transform(copy(batch) if isinstance(batch, dict | list) else batch)
        else:
            new = self._with_parts(where, batch, self.keys)
        after = _sizes(new)
        first = next(iter(before.values()), None)
        found = {path: after[path] for path, size in before.items() if size == first and path in after}
        if not found and before:  # of another form
            found = dict([*after.items()][:1])
        wrong = [f"{path} of {size} samples" for path, size in found.items() if size != first]
        if new is None or wrong:
            got = "None" if new is None else f"{', '.join(wrong)}, {first} before"
            fix = "Change samples in their places; choose which there are in the dataset or the sampler."
            fix = "Is a return missing?" if new is None else fix
            rule = "a transform must return a batch of as many samples as it was given"
            raise MisconfigurationException(Problem(where, rule, got, fix))
        return new

    def _with_parts(self, where: str, batch: Any, keys: tuple[int | str, ...]) -> Any:
        """Return the batch with the parts that were asked for changed."""
        items = items_of(batch)
        names = getattr(batch, "_fields", ())
        places = [names.index(key) if key in names else key for key in keys]
        if isinstance(batch, list | tuple):
            places = [key + len(batch) if isinstance(key, int) and key < 0 else key for key in places]
        if items is None or any(key not in items for key in places):
            known = "none" if items is None else ", ".join(map(repr, items))
            rule, got = f"the batch must have the keys {list(keys)}", f"{type(batch).__name__} with {known}"
            raise ConfigError(Problem(where, rule, got, "Correct keys, or leave it out: the whole batch is given."))
        new = self.transform(*(items[key] for key in places))
        if new is None:
            return None
        values = list(new) if isinstance(new, list | tuple) and not self._single else [new]
        if len(values) != len(places):
            rule = f"with {len(places)} keys the transform must return {len(places)} values"
            raise MisconfigurationException(Problem(where, rule, str(len(values)), "Return one for each key."))
        return rebuilt(batch, {**items, **dict(zip(places, values, strict=True))})


def _sizes(batch: Any) -> dict[str, int]:
    """Return the first dimension of each tensor that has one, by its path."""
    tensors = ((path, leaf) for path, leaf in leaves(batch, "batch") if isinstance(leaf, Tensor))
    return {path: leaf.shape[0] for path, leaf in tensors if leaf.ndim}
