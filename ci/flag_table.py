"""Check that docs/flags.md holds the table that the code prints; `--write` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from hook_table import check_page, printed_by

PAGE = Path(__file__).resolve().parents[1] / "docs" / "flags.md"
INTRODUCTION = """\
# Flags

All flags of the `Trainer` are keyword arguments, and all have defaults: `Trainer()` works. A first program writes a
handful of them.

```python
from lt_core import Trainer
from lt_core.callbacks import EarlyStopping

trainer = Trainer(
    max_epochs=20,                          # when to stop
    accelerator="auto", devices="auto",     # where to compute; this is the default
    accumulate_grad_batches=4,              # batches that make one optimizer step
    gradient_clip_val=1.0,                  # bound of the gradients
    callbacks=[EarlyStopping("val_loss")],  # what is done besides
)
```

| to | write |
| --- | --- |
| try a program in seconds | `fast_dev_run=True`; `limit_train_batches=10`; `overfit_batches=1` |
| stop | `max_epochs`, `max_steps`, `max_time="00:02:30:00"` |
| validate more often, or less | `val_check_interval=0.25`, `check_val_every_n_epoch=5` |
| show less | `enable_progress_bar=False`, `enable_model_summary=False` |
| keep nothing | `logger=False`, `enable_checkpointing=False` |
| use several devices or machines | `devices=4`, `strategy="ddp"`, `num_nodes=2` ([more](processes.md)) |
| compute in 16 bits | `precision="bf16-mixed"` ([more](precision.md)) |
| get the same result each time | `deterministic=True`, and `seed_everything(1)` before the model is made |

**In the environment.** `PL_TRAINER_MAX_EPOCHS=3` sets a flag that the program does not write; what it writes wins.

```python
import os

os.environ["PL_TRAINER_LIMIT_TRAIN_BATCHES"] = "10"
assert Trainer(max_epochs=1).limit_train_batches == 10
assert Trainer(max_epochs=1, limit_train_batches=0.5).limit_train_batches == 0.5
del os.environ["PL_TRAINER_LIMIT_TRAIN_BATCHES"]
```

**What is wrong** is one error before anything starts, with every wrong value, unknown name and refused combination.

```python
try:
    Trainer(max_epoch=3, accumulate_grad_batches=0, enable_progress_bar="yes")
except (TypeError, ValueError) as error:
    print(error)
```

On a command line they are `--trainer.max_epochs 3` ([more](cli.md)); names of older versions are [here](old_flags.md).

## All of them

As `python -m lt_core.config` prints them from the table by which they are parsed.

"""


def expected() -> str:
    """Return the page as it should be: the introduction and what the code prints."""
    return printed_by("lt_core.config", INTRODUCTION)


if __name__ == "__main__":
    sys.exit(check_page(PAGE, expected()))
