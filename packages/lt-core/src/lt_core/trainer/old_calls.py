"""Answer calls of a trainer that older programs make, with what does the same today."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from lt_core.notices import warn

if TYPE_CHECKING:
    from lt_core.trainer import Trainer
    from lt_core.tuner import Tuner

__all__ = ["OldCalls"]


class OldCalls:
    """Methods and properties of `Trainer` that go by another name today; each use gives a warning."""

    _given: dict[str, Any]

    @property
    def tuner(self) -> Tuner:
        """Return a `Tuner` of this trainer."""
        from lt_core.tuner import Tuner

        warn("trainer.tuner: this is written Tuner(trainer) today.", FutureWarning)
        return Tuner(cast("Trainer", self))

    def tune(
        self,
        model: Any = None,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        dataloaders: Any = None,
        datamodule: Any = None,
        scale_batch_size_kwargs: dict[str, Any] | None = None,
        lr_find_kwargs: dict[str, Any] | None = None,
        method: str = "fit",
    ) -> dict[str, Any]:
        """Return what the flags ``auto_scale_batch_size`` and ``auto_lr_find`` ask for, by the names of today's calls.

        Args:
            model: The module.
            train_dataloaders: As for `Tuner.lr_find`, like all loaders.
            val_dataloaders: What fit takes.
            dataloaders: What the other methods take.
            datamodule: Holds the loaders instead.
            scale_batch_size_kwargs: More arguments of `Tuner.scale_batch_size`.
            lr_find_kwargs: More arguments of `Tuner.lr_find`.
            method: Whose step is tried.
        """
        from lt_core.tuner import Tuner

        sizes, rates = self._given.get("auto_scale_batch_size"), self._given.get("auto_lr_find")
        tuner, found = Tuner(cast("Trainer", self)), dict[str, Any]()
        today = [
            *(["Tuner(trainer).scale_batch_size(model)"] if sizes else ()),
            *(["Tuner(trainer).lr_find(model)"] if rates else ()),
        ]
        nothing = "it finds nothing without auto_scale_batch_size or auto_lr_find. Call Tuner(trainer).lr_find(model)"
        meaning = f"this is written {' and '.join(today)} today" if today else nothing
        warn(f"Trainer.tune: {meaning}.", FutureWarning)
        model = self._given.get("model") if model is None else model
        given = model, train_dataloaders, val_dataloaders, dataloaders, datamodule, method
        if sizes:
            mode = {"mode": sizes} if isinstance(sizes, str) else {}
            found["scale_batch_size"] = tuner.scale_batch_size(*given, **{**mode, **(scale_batch_size_kwargs or {})})
        if rates:
            name = {"attr_name": rates} if isinstance(rates, str) else {}
            found["lr_find"] = tuner.lr_find(*given, **{**name, **(lr_find_kwargs or {})})
        return found
