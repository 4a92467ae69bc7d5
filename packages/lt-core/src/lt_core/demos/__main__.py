"""Train the boring model, as the smallest check that an installation works."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from lt_core.demos.boring_classes import BoringDataModule, BoringModel, ManualOptimBoringModel


def main(arguments: Sequence[str] | None = None) -> float:
    """Train and print the loss.

    Args:
        arguments: The command line; the process's own if None.

    Returns:
        The loss on the training data after training.
    """
    from lt_core import Trainer, seed_everything

    parser = argparse.ArgumentParser(prog="python -m lt_core.demos", description=__doc__)
    parser.add_argument("--epochs", type=int, default=2, help="how long to train")
    parser.add_argument("--manual", action="store_true", help="use manual optimization")
    options = parser.parse_args(arguments)
    seed_everything(0, verbose=False)
    model = ManualOptimBoringModel() if options.manual else BoringModel()
    data = BoringDataModule()
    trainer = Trainer(max_epochs=options.epochs, logger=False, enable_checkpointing=False, num_sanity_val_steps=0)
    trainer.fit(model, datamodule=data)
    with torch.no_grad():
        losses = [model.loss(model(batch)) for batch in data.train_dataloader()]
    loss = float(torch.stack(losses).mean())
    print(f"{type(model).__name__}: {trainer.global_step} steps in {trainer.current_epoch} epochs, loss {loss:.4f}")
    return loss


if __name__ == "__main__":
    main()
