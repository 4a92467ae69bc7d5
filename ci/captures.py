"""Check that docs/captures.md shows what the programs below show; `--write` writes it anew. Needs tmux.

Each program runs in a terminal of each width, or with its output in a pipe, in an empty folder. `shot()` in a program
takes a picture at that moment; its end is one in any case. `Clock` lets a program's time pass as it says.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "captures.md"
PICTURE = PAGE.parent / "pictures" / "history.png"
INTRODUCTION = """\
# What you see

Captures of terminals, made by `python ci/captures.py --write` from the programs in it.

`RichProgressBar` draws ten times a second at most, whatever the number of batches. With `leave=True` each epoch keeps
its bar, with `leave=False` only the last one's stays; `Trainer(enable_progress_bar=False)` shows nothing. In a notebook
a block of the cell's output is replaced in place: the bar, below a table with a row for each epoch that is over.
"""
PIPE = 0  # a width: no terminal at all
NOTEBOOK = -1  # a width: what a program prints is the HTML of a notebook's cells; a picture becomes a file
HOME = "/home/you/my-models"  # what a program's folder, /tmp/model-abcdefgh, is called on the page
LINES = 40
SECONDS = 240  # for a program, on a busy machine

PREAMBLE = """\
import os, sys, time, warnings
import torch
from torch import nn
from lt_core import LightningModule, Trainer
from lt_core.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar

torch.manual_seed(1)
warnings.simplefilter("ignore")

def shot():
    if not sys.stdout.isatty():
        return
    open("shot", "w").close()
    while os.path.exists("shot"):
        time.sleep(0.01)

class Clock:
    now = 0.0
    def __call__(self):
        return self.now

class Net(LightningModule):
    def __init__(self, names, clock, shoots=()):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.names, self.clock, self.shoots = names, clock, shoots
    def shown(self, place):
        if (self.current_epoch, place) in self.shoots and not self.trainer.sanity_checking:
            shot()
    def training_step(self, batch, batch_idx):
        self.clock.now += 0.25
        fall = 0.9 ** self.global_step
        self.log("train_loss", fall, prog_bar=True)
        for number, name in enumerate(self.names):
            self.log(name, fall / (number + 2), prog_bar=True)
        return self.layer(batch).mean()
    def on_train_batch_start(self, batch, batch_idx):
        self.shown(batch_idx)
    def validation_step(self, batch, batch_idx):
        self.shown("validation") if batch_idx == 3 else None
        self.clock.now += 0.125
        self.log("val_loss", 0.5 * 0.9 ** self.current_epoch, prog_bar=True)
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

DATA = [torch.ones(1, 1)] * 16

def trainer(clock, epochs=3, **flags):
    bar = RichProgressBar()
    bar._clock = clock
    flags = dict(logger=False, enable_checkpointing=False, enable_model_summary=False, accelerator="cpu") | flags
    return Trainer(**dict(max_epochs=epochs, callbacks=[bar]) | flags)
"""
NINE = '("train_accuracy", "grad_norm", "teacher/temperature", "momentum", "lr/backbone", "lr/head", "ema")'


@dataclass(frozen=True)
class Screen:
    """Program, and what is to be seen of it.

    Attributes:
        title: Heading on the page.
        words: What is shown.
        program: Its source; what `PREAMBLE` defines is at hand.
        widths: Columns of the terminals; `PIPE` and `NOTEBOOK` are none.
    """

    title: str
    words: str
    program: str
    widths: tuple[int, ...] = (80,)


CELLS = """\
from types import SimpleNamespace

class Block:
    def __init__(self, forms, raw, display_id):
        self.update(forms)
    def update(self, forms, raw=True):
        self.html = forms["text/html"]
        Block.newest = self

kernel = SimpleNamespace(kernel=None)
sys.modules["IPython"] = SimpleNamespace(get_ipython=lambda: kernel)
sys.modules["IPython.display"] = SimpleNamespace(display=Block)
Net.shown = lambda self, place: print(Block.newest.html) if (self.current_epoch, place) == (2, 8) else None
clock = Clock()
one = trainer(clock)
one.fit(Net((), clock), DATA, DATA[:8])
del sys.modules["IPython"], sys.modules["IPython.display"]
print(Block.newest.html, one.history._repr_html_(), sep="\\n")
"""
TOOLS = """\
import subprocess

clock = Clock()
quiet = dict(enable_progress_bar=False, enable_checkpointing=True)
trainer(clock, 1, callbacks=[ModelCheckpoint("saved")], **quiet).fit(Net((), clock), DATA, DATA[:8])
for words in ("", ".checkpoint show saved/epoch=0-step=16.ckpt", ".checkpoint verify saved/*.ckpt"):
    print(f"$ python -m lt_core{words}", flush=True)
    subprocess.run(f"{sys.executable} -m lt_core{words}", shell=True)
    print(flush=True)
"""
ENDS = """\
import signal
from datetime import timedelta
from lt_core.callbacks import LambdaCallback

def run(*callbacks, **flags):
    clock, quiet = Clock(), dict(enable_progress_bar=False, enable_checkpointing=True)
    trainer(clock, callbacks=list(callbacks), **quiet | flags).fit(Net((), clock), DATA, DATA[:8])

def stop(trainer, *_):
    trainer.should_stop = trainer.global_step == 20

def terminate(trainer, *_):
    if trainer.global_step == 20:
        os.kill(os.getpid(), signal.SIGTERM)

run(ModelCheckpoint("best", monitor="val_loss"))
run(max_steps=20)
run(EarlyStopping("val_loss", stopping_threshold=0.46))
run(max_time=timedelta(milliseconds=1))
run(LambdaCallback(on_train_batch_end=stop))
run(LambdaCallback(on_train_batch_end=terminate))
"""
MISTAKES = """\
def shown(title, call):
    print("#", title)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            call()
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    print(*(f"{one.category.__name__}: {one.message}" for one in seen), "", sep="\\n")

def fit(net=None, **flags):
    one = trainer(Clock(), 1, enable_progress_bar=False, callbacks=flags.pop("callbacks", []), **flags)
    one.fit(net or Net((), Clock()), DATA, DATA[:8])
    return one

class ByStep(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0, on_step=True, on_epoch=False)

class Old(Net):
    def training_epoch_end(self, outputs):
        pass

stopping = EarlyStopping("val_loss")
shown("a monitor that is logged with on_epoch=False", lambda: fit(ByStep((), Clock()), callbacks=[stopping]))
shown("a monitor with limit_val_batches=0", lambda: fit(limit_val_batches=0, callbacks=[stopping]))
shown("a finished trainer that is fitted again", lambda: fit().fit(Net((), Clock()), DATA, DATA[:8]))
shown("a hook of versions before 2.0", lambda: fit(Old((), Clock())))
shown('accelerator="tpu"', lambda: fit(accelerator="tpu"))
shown("sync_batchnorm=True with one device", lambda: fit(sync_batchnorm=True, devices=1))
shown("fit(val_dataloader=...)", lambda: fit().fit(Net((), Clock()), DATA, val_dataloader=DATA))
shown("max_epoch=3", lambda: fit(max_epoch=3))
shown("an old flag", lambda: fit(row_log_interval=10))
shown("an old flag beside the new one", lambda: fit(row_log_interval=10, log_every_n_steps=5))
"""


SCREENS = (
    Screen(
        "A training run",
        "The bar in the middle of an epoch and in its validation; then what is left: a line for each epoch.",
        "clock = Clock()\ntrainer(clock).fit(Net((), clock, [(1, 8), (1, 'validation')]), DATA, DATA[:8])",
        (80, 100, 140),
    ),
    Screen(
        "Nine metrics",
        "No name and no number is broken: the bar takes three lines at most, and says how many metrics it leaves out.",
        f"clock = Clock()\ntrainer(clock, 2).fit(Net({NINE}, clock, [(1, 8), (1, 'validation')]), DATA, DATA[:8])",
        (80, 100, 140),
    ),
    Screen(
        "The bar of tqdm",
        "`callbacks=[TQDMProgressBar()]`: a line for the bar, with the metrics for which it has room.",
        "from lt_core.callbacks import TQDMProgressBar\n"
        "clock, bar = Clock(), TQDMProgressBar()\n"
        "bar._clock = clock\n"
        "net = Net(('train_accuracy',), clock, [(1, 8), (1, 'validation')])\n"
        "trainer(clock, 2, callbacks=[bar]).fit(net, DATA, DATA[:8])",
        (100,),
    ),
    Screen(
        "A pipe, or the log of a batch system",
        "A line each ten seconds at most, and one for each epoch.",
        "clock = Clock()\ntrainer(clock).fit(Net((), clock), DATA * 4, DATA[:8])",
        (PIPE,),
    ),
    Screen(
        "The history",
        "A row for each epoch, however short, with its training loss.",
        "clock = Clock()\n"
        "one = trainer(clock, enable_progress_bar=False, callbacks=[])\n"
        "one.fit(Net((), clock), DATA, DATA[:8])\n"
        "print(one.history.to_frame())",
        (PIPE,),
    ),
    Screen(
        "A notebook",
        "The block of the cell that calls `fit`, in mid-epoch and at its end; a cell whose last line is the history.",
        CELLS,
        (NOTEBOOK,),
    ),
    Screen(
        "Validation, test and prediction",
        "Each leaves a line.",
        "clock, net = Clock(), None\n"
        "net = Net((), clock)\n"
        "Net.test_step, Net.predict_step = Net.validation_step, lambda self, batch, batch_idx: self.layer(batch)\n"
        "one = trainer(clock)\n"
        "one.validate(net, DATA, verbose=False)\n"
        "one.test(net, DATA)\n"
        "one.predict(net, DATA)",
        (80,),
    ),
    Screen(
        "How a run ends",
        "One line says why, where, and which file is the best or the last; after a signal, with which call it goes on.",
        ENDS,
        (PIPE,),
    ),
    Screen(
        "What is installed, and what a checkpoint holds",
        "For a report of a fault, and for a file from elsewhere.",
        TOOLS,
        (PIPE,),
    ),
    Screen(
        "What is answered to mistakes", "One sentence with the place, the rule and what to write.", MISTAKES, (PIPE,)
    ),
)


def pictures(screen: Screen, width: int) -> list[str]:
    """Run a program and return its shots and its end, as text.

    Raises:
        RuntimeError: If it ends badly, or not in time.
    """
    with tempfile.TemporaryDirectory(prefix="model-", dir="/tmp") as folder:
        home = Path(folder)
        (home / "program.py").write_text(f"{PREAMBLE}\n{screen.program}\n", encoding="utf-8")
        if width == NOTEBOOK:
            return list(_in_pipe(home, "2>/dev/null"))
        shown = list(_in_pipe(home) if width == PIPE else _in_terminal(home, width))
    shown = [text.replace(folder, HOME) for text in shown]
    return ["\n".join(line.rstrip() for line in text.splitlines()).strip("\n") for text in shown]


def _in_pipe(home: Path, errors: str = "2>&1") -> Iterator[str]:
    command = f"{shlex.quote(sys.executable)} program.py {errors}"
    end = subprocess.run(
        command, shell=True, cwd=home, capture_output=True, encoding="utf-8", timeout=SECONDS, check=False
    )
    yield end.stdout


def _in_terminal(home: Path, width: int) -> Iterator[str]:
    """Yield what a terminal shows at each shot, and all that it has shown at the end."""
    tmux = ["tmux", "-S", str(home / "socket"), "-f", os.devnull]
    command = f"{shlex.quote(sys.executable)} program.py; echo $? > status; exec sleep {SECONDS}"
    # The folder of this process is not the program's; its environment is.
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", str(width), "-y", str(LINES), "-c", str(home), command],
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
    )
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            over, taken = (home / "status").exists(), (home / "shot").exists()
            if over or taken:
                capture = [*tmux, "capture-pane", "-p", *(("-S", "-") if over else ())]
                yield subprocess.run(capture, check=True, capture_output=True, text=True, encoding="utf-8").stdout
            if over:
                return
            if taken:
                (home / "shot").unlink()
            time.sleep(0.05)
        raise RuntimeError(f"{home}: the program did not end in {SECONDS} s")
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)


def section(screen: Screen) -> str:
    """Return a program's part of the page."""
    parts = [f"## {screen.title}", screen.words]
    with ThreadPoolExecutor(len(screen.widths)) as pool:
        for width, shown in zip(screen.widths, pool.map(lambda w: pictures(screen, w), screen.widths), strict=True):
            if width == NOTEBOOK:
                parts.append(_cells(shown[0]))
                continue
            parts.append("In a pipe:" if width == PIPE else f"In {width} columns:")
            parts += [f"```text\n{text}\n```" for text in shown]
    return "\n\n".join(parts) + "\n"


def _cells(shown: str) -> str:
    """Return HTML as the page has it; `--write` writes its picture."""
    picture = re.search(r'<img [^>]*base64,([^"]*)">', shown)
    if picture is None:
        return f"```{{raw}} html\n{shown.strip()}\n```"
    if "--write" in sys.argv:
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(base64.b64decode(picture[1]))
    return f"{_cells(shown.replace(picture[0], ''))}\n\n![metrics by step]({PICTURE.parent.name}/{PICTURE.name})"


def masked(text: str) -> str:
    """Return a text without what differs from run to run: durations, speeds, and the bar that fills the rest."""
    text = re.sub(r"^(packages|python|needs|devices|variables) .*", r"\1", text, flags=re.M)  # and by machine
    text = re.sub(r"[\d,]+ bytes|torch [\d.]+(\+\w+)?|run +\w{16}, begun .*", "0", text)
    text = re.sub(r"\d+:\d\d(:\d\d)?|\d+(\.\d+)? ?(m?s|it/s|s/it)\b", "0 s", text)
    text = re.sub(r"\|[█▉▊▋▌▍▎▏ ]*\| ", "| | ", text)
    return re.sub(r"[━╸╺]+", "━", text)


def parts_of(page: str) -> dict[str, str]:
    """Return the page's parts by their title."""
    return {part.split("\n", 1)[0]: f"## {part.rstrip()}\n" for part in page.split("\n## ")[1:]}


def main() -> int:
    """Write or check the page; return the exit status."""
    made = {screen.title: section(screen) for screen in SCREENS}
    if "--write" in sys.argv:
        PAGE.write_text("\n".join([INTRODUCTION, *made.values()]), encoding="utf-8")
        return 0
    page = parts_of(PAGE.read_text(encoding="utf-8"))
    wrong = [title for title, text in made.items() if masked(page.get(title, "")) != masked(text)]
    for title in wrong:
        print(f"docs/{PAGE.name}: {title!r} is not what is shown. Run: python ci/captures.py --write\n{made[title]}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
