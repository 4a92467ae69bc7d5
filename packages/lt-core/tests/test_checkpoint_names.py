"""Names of checkpoint files."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lt_core.callbacks import ModelCheckpoint
from lt_core.callbacks.checkpointing.files import fields, first_free, format_name
from lt_interface.errors import ConfigError


@pytest.mark.parametrize(
    ("template", "metrics", "expected"),
    [
        (None, {"epoch": 0, "step": 10}, "epoch=0-step=10"),
        ("{epoch:02d}-{val_loss:.2f}", {"epoch": 3, "val_loss": 0.1234}, "epoch=03-val_loss=0.12"),
        ("{epoch}_{acc:.1f}", {"epoch": torch.tensor(3), "acc": torch.tensor(0.25)}, "epoch=3_acc=0.2"),
        ("{val/loss:.2f}", {"val/loss": 1.0}, "val_loss=1.00"),
        ("{loss/dataloader_idx_1:.1f}", {"loss/dataloader_idx_1": 2.0}, "loss_dataloader_idx_1=2.0"),
        ("{gone}", {}, "gone=0"),
        ("{gone:.2f}", {}, "gone=0.00"),
        ("plain", {"epoch": 1}, "plain"),
        ("{count:d}", {"count": 3.0}, "count=3"),
    ],
)
def test_a_template_is_filled(template, metrics, expected):
    """A template's fields become name and value, and a metric that is not there counts as zero."""
    assert format_name(template, metrics) == expected


def test_names_of_metrics_can_be_left_out():
    """Without automatic insertion only what the template says stands in the name."""
    assert format_name("e{epoch}-l{loss:.1f}", {"epoch": 2, "loss": 0.5}, auto_insert=False) == "e2-l0.5"


def test_prefix_and_separators_are_those_of_the_class():
    """A subclass changes how parts are joined and what stands between name and value."""

    class Own(ModelCheckpoint):
        CHECKPOINT_JOIN_CHAR = "_"
        CHECKPOINT_EQUALS_CHAR = ":"
        FILE_EXTENSION = ".safe"

    name = Own(filename="{epoch}").format_checkpoint_name({"epoch": 1}, ver=2, prefix="test")
    assert name == "test_epoch:1_v2.safe"


def test_a_path_lies_in_the_folder(tmp_path):
    """With a dirpath the formatted name is a whole path."""
    callback = ModelCheckpoint(dirpath=tmp_path, filename="{epoch}-{val_loss:.2f}")
    path = callback.format_checkpoint_name({"epoch": 1, "val_loss": 0.5})
    assert path == str(tmp_path / "epoch=1-val_loss=0.50.ckpt")


@pytest.mark.parametrize("template", ["{epoch", "epoch}", "{}", "{loss:q}", "{loss:.2f!}"])
def test_a_broken_template_is_refused_at_once(template):
    """A template that could never be filled is an error where the callback is made."""
    with pytest.raises(ConfigError, match="ModelCheckpoint\\(filename="):
        ModelCheckpoint(filename=template)


def test_a_value_that_does_not_fit_names_the_field():
    """A fraction for a whole number's format is reported with field and value."""
    with pytest.raises(ConfigError, match=r"'loss' does not fit its format. Got 0.5"):
        format_name("{loss:02d}", {"loss": 0.5})


def test_fields_are_found():
    """The metrics that a template needs are known before anything is logged."""
    assert fields("{epoch}-{val/loss:.2f}") == ["epoch", "val/loss"]
    assert fields(None) == ["epoch", "step"]


@given(taken=st.sets(st.integers(0, 20)))
def test_the_first_free_version_is_taken(taken):
    """The name is free, and every smaller version is not."""
    names = ["a.ckpt" if i == 0 else f"a-v{i}.ckpt" for i in range(22)]
    in_use = {names[i] for i in taken}
    free = first_free("a.ckpt", in_use.__contains__)
    assert free not in in_use
    assert all(name in in_use for name in names[: names.index(free)])


def test_a_version_stands_before_the_extension_of_a_dotted_name():
    """Dots in a metric's value are no extension."""
    assert first_free("/x/l=0.12.ckpt", {"/x/l=0.12.ckpt"}.__contains__) == "/x/l=0.12-v1.ckpt"
