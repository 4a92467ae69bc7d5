"""What a model consists of."""

import io
import sys

import pytest
import torch
from torch import nn

from lt_core import Trainer
from lt_core.callbacks import ModelSummary, RichModelSummary
from lt_core.demos import BoringModel
from lt_core.model.summary import human_count, summarize
from lt_interface.errors import ConfigError


class _Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(3))
        self.example_input_array = torch.zeros(5, 8)
        self.body.requires_grad_(False)
        self.head.eval()

    def forward(self, x):
        noise = torch.rand(1)  # draws from the random state, which must come back
        return self.head(self.body(x)) * self.scale[0] + noise


def test_layers_parameters_sizes_and_flops():
    """Each layer shows its type, parameters, mode, sizes and FLOPs; loose parameters have a row of their own."""
    summary = summarize(_Net())
    rows = [(r.name, r.type, r.parameters, r.training, r.in_size, r.out_size, r.flops) for r in summary.rows]
    assert rows == [
        ("body", "Sequential", 36, True, [5, 8], [5, 4], 2 * 5 * 8 * 4),
        ("head", "Linear", 8, False, [5, 4], [5, 2], 2 * 5 * 4 * 2),
        ("other params", "n/a", 3, None, "n/a", "n/a", 0),
    ]
    assert (summary.total_parameters, summary.trainable_parameters) == (47, 11)
    assert summary.model_size == pytest.approx(47 * 4e-6)
    assert summary.modes == {"train": 4, "eval": 1}
    assert summary.total_flops == 400


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_an_example_has_the_format_of_the_module(precision):
    """In a precision of one format the example is converted as a batch is, for the summary and for export."""
    model = BoringModel()
    model.example_input_array = torch.zeros(5, 32)
    trainer = Trainer(accelerator="cpu", precision=precision, fast_dev_run=1, callbacks=[ModelSummary()])
    trainer.fit(model)
    assert summarize(model).rows[0].out_size == [5, 2]
    assert model.to_torchscript(method="trace")(torch.zeros(1, 32, dtype=model.dtype)).dtype is model.dtype
    assert model.example_input_array.dtype is torch.float32


@pytest.mark.parametrize(("depth", "names"), [(0, 0), (1, 3), (2, 6), (-1, 6)])
def test_the_depth_says_how_much_is_listed(depth, names):
    """Depth 1 lists children, 2 their children, -1 all, 0 nothing."""
    assert len(summarize(_Net(), depth).rows) == names
    with pytest.raises(ConfigError, match="max_depth=-2"):
        summarize(_Net(), -2)


def test_measuring_changes_nothing():
    """Modes, random state and gradients are as before."""
    net = _Net()
    modes = [m.training for m in net.modules()]
    state = torch.get_rng_state()
    summarize(net)
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    assert not net.head._forward_hooks


def test_modes_come_back_when_the_example_does_not_fit():
    """An example that the model refuses raises the model's own error, and leaves no trace."""
    net = _Net()
    net.example_input_array = torch.zeros(5, 9)
    with pytest.raises(RuntimeError):
        summarize(net)
    assert net.training
    assert not net.head._forward_hooks


def test_without_an_example_there_are_no_sizes():
    """The table leaves out what was not measured."""
    net = _Net()
    del net.example_input_array
    summary = summarize(net)
    assert list(summary.columns()) == [" ", "Name", "Type", "Params", "Mode"]
    assert "FLOPs" not in str(summary)


class _Many(nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "both": (a, b)}


class _Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = _Many()

    def forward(self, a, b):
        return self.inner(a, b)


@pytest.mark.parametrize("example", [(torch.zeros(2), torch.zeros(2)), {"a": torch.zeros(2), "b": torch.zeros(2)}])
def test_several_inputs(example):
    """A tuple gives the inputs by position, a dict by name."""
    net = _Outer()
    net.example_input_array = example
    row = summarize(net).rows[0]
    assert (row.in_size, row.out_size) == ([[2], [2]], [[2], [[2], [2]]])


def test_shared_parameters_count_once():
    """The total counts a parameter that two layers share once."""
    net = nn.Module()
    net.a = nn.Linear(4, 4, bias=False)
    net.b = nn.Linear(4, 4, bias=False)
    net.b.weight = net.a.weight
    assert summarize(net).total_parameters == 16


def test_lazy_parameters_are_told():
    """Parameters without a size yet count as none, with a warning."""
    net = nn.Module()
    net.a = nn.LazyLinear(4)
    with pytest.warns(UserWarning, match="lazy parameters"):
        assert summarize(net).total_parameters == 0


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0 K"), (123_456, "123 K"), (999_960, "1.0 M"), (2_500_000_000, "2.5 B")],
)
def test_counts_are_readable(number, text):
    """Large counts get a unit."""
    assert human_count(number) == text


def _fit(callbacks, tmp_path, **flags):
    trainer = Trainer(
        callbacks=callbacks,
        default_root_dir=tmp_path,
        max_epochs=1,
        limit_train_batches=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        **flags,
    )
    trainer.fit(BoringModel())


def test_fit_shows_plain_text_in_a_file(tmp_path, capsys):
    """A run whose output is no terminal shows the table as plain text, once."""
    _fit([], tmp_path)
    out = capsys.readouterr().out
    assert out.splitlines()[:5] == [
        "  | Name  | Type   | Params | Mode",
        "-----------------------------------",
        "0 | layer | Linear | 66     | train",
        "-----------------------------------",
        "66     Trainable params",
    ]


@pytest.mark.parametrize("callback", [ModelSummary(max_depth=0), None])
def test_it_can_be_switched_off(tmp_path, capsys, callback):
    """Depth 0 and the trainer's flag show nothing."""
    _fit([] if callback is None else [callback], tmp_path, enable_model_summary=callback is not None)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("base", [ModelSummary, RichModelSummary])
def test_an_override_gets_what_lightnings_gets(tmp_path, capsys, base):
    """A static override of summarize gets columns, counts, size, modes and FLOPs, and super's shows them."""
    seen = []

    class Static(base):
        @staticmethod
        def summarize(summary_data, total_parameters, trainable_parameters, model_size, total_training_modes, **more):
            table = dict(summary_data)
            seen.append((table["Name"], total_parameters, trainable_parameters, total_training_modes, more))
            assert model_size == pytest.approx(66 * 4e-6)

    class Bound(base):
        def summarize(self, summary_data, *counts, **more):
            super().summarize([(title, cells) for title, cells in summary_data if title != "Mode"], *counts, **more)

    _fit([Static(style="red")], tmp_path)
    assert seen == [(["layer"], 66, 66, {"train": 1, "eval": 0}, {"total_flops": 0, "style": "red"})]
    assert "Trainable" not in capsys.readouterr().out
    _fit([Bound()], tmp_path)
    shown = capsys.readouterr().out
    assert "Trainable params" in shown
    assert "Mode " not in shown


def test_a_terminal_gets_a_rich_table(tmp_path, monkeypatch, capsys):
    """On a terminal, or if asked for, the table is drawn by rich."""
    _fit([RichModelSummary()], tmp_path)
    drawn = capsys.readouterr().out
    assert "┃ Name  ┃ Type" in drawn

    class Tty(io.StringIO):
        def isatty(self):
            return True

    screen = Tty()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stdout", screen)
    _fit([], tmp_path)
    assert "┃" in screen.getvalue()
