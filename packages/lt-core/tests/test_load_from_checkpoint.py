"""load_from_checkpoint of modules and data modules, and weights that do not fit."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lt_core import Trainer
from lt_core.checkpoint import save_checkpoint
from lt_core.checkpoint.weights import load_weights
from lt_core.datamodule import LightningDataModule
from lt_core.demos import BoringModel
from lt_core.model.hparams import checkpoint_entries
from lt_core.module import LightningModule
from lt_interface.errors import CheckpointError, ConfigError, ConfigTypeError


class Net(LightningModule):
    def __init__(self, width: int, depth: int = 1, act: Any = nn.ReLU) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)])
        self.act = act()


def save(module: LightningModule, path: Path, **more: Any) -> Path:
    """Write what the trainer writes of a module."""
    module._warned_of_softened = True  # the warning has a test of its own
    entries = checkpoint_entries(module)
    save_checkpoint({"epoch": 1, "global_step": 2, "state_dict": module.state_dict(), **entries, **more}, path)
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.ckpt"


def test_builds_with_saved_arguments_and_weights(file: Path) -> None:
    """The arguments and weights come back; what was a class must be given by keyword."""
    net = Net(3, depth=2)
    save(net, file)
    twin = Net.load_from_checkpoint(file, act=nn.GELU)
    assert (twin.hparams.width, twin.hparams.depth) == (3, 2)
    assert isinstance(twin.act, nn.GELU)
    assert twin.training
    for name, value in net.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value)


def test_classes_are_asked_for(file: Path) -> None:
    """An argument of which only the text was kept is refused by name, with the keyword to give."""
    save(Net(3), file)
    with pytest.raises(
        CheckpointError, match=r"not kept in a checkpoint. Got act \(.*ReLU.*\). Give them: .*act=\.\.\."
    ):
        Net.load_from_checkpoint(file)


def test_keywords_go_before_saved_values(file: Path) -> None:
    """Given arguments replace saved ones."""
    save(Net(3, depth=1), file)
    with pytest.raises(CheckpointError, match="missing in the file"):
        Net.load_from_checkpoint(file, depth=2, act=nn.ReLU)
    assert Net.load_from_checkpoint(file, depth=2, act=nn.ReLU, strict=False).hparams.depth == 2


def test_missing_argument_is_named(file: Path) -> None:
    """An argument that is neither saved nor given is named."""
    net = Net(3)
    net.remove_ignored_hparams(["width", "act"])
    save(net, file)
    with pytest.raises(
        CheckpointError, match=r"Got none for width. Give them: load_from_checkpoint\(path, width=\.\.\.\)"
    ):
        Net.load_from_checkpoint(file)


def test_unknown_keyword_warns(file: Path) -> None:
    """A keyword that __init__ does not take is ignored with a warning that names the nearest."""
    save(Net(3), file)
    with pytest.warns(UserWarning, match='takes no widht, so it is ignored. Did you mean "width"'):
        Net.load_from_checkpoint(file, widht=4, act=nn.ReLU)


def test_subclass_takes_only_what_it_knows(file: Path) -> None:
    """Saved arguments that the class does not take are left out, unless it takes any."""

    class Fixed(Net):
        def __init__(self, width: int) -> None:
            super().__init__(width, depth=2)

    class Open(Net):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)

    save(Fixed(3), file)
    assert Fixed.load_from_checkpoint(file).hparams.width == 3
    assert Open.load_from_checkpoint(file, act=nn.ReLU).hparams.depth == 2


def test_only_on_the_class(file: Path) -> None:
    """Calling it on an instance is refused, since that instance would not change."""
    save(Net(3), file)
    with pytest.raises(ConfigTypeError, match=r"must be called on the class.*Net\.load_from_checkpoint\("):
        Net(3).load_from_checkpoint(file)
    with pytest.raises(TypeError):
        LightningDataModule().load_from_checkpoint(file)


def test_subclass_can_extend_it(file: Path) -> None:
    """A class method that overrides it can call it through super."""

    class Extended(Net):
        @classmethod
        def load_from_checkpoint(cls, path: Any) -> Any:  # type: ignore[override]
            return super().load_from_checkpoint(path, act=nn.Tanh)

    save(Net(3), file)
    loaded = Extended.load_from_checkpoint(file)
    assert type(loaded) is Extended
    assert isinstance(loaded.act, nn.Tanh)


@dataclass
class Inner:
    rate: float = 0.5


@dataclass
class Config:
    width: int = 3
    inner: Inner = field(default_factory=Inner)


class Whole(LightningModule):
    def __init__(self, conf: Config, scale: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters(conf)
        self.conf = conf
        self.layer = nn.Linear(conf.width, 1)


class ByNamespace(LightningModule):
    def __init__(self, args: Namespace) -> None:
        super().__init__()
        self.save_hyperparameters(args)
        self.args = args


class Untyped(LightningModule):
    def __init__(self, hparams: Any) -> None:
        super().__init__()
        self.save_hyperparameters(hparams)
        self.width = hparams.width


class Parts(LightningModule):
    def __init__(self, conf: Config | None, other: Any) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.conf, self.other = conf, other


def test_dataclass_comes_back_by_annotation(file: Path) -> None:
    """A dataclass is rebuilt, at any depth, from the class's own annotation; keywords change its fields."""
    save(Whole(Config(width=2, inner=Inner(0.1))), file)
    assert Whole.load_from_checkpoint(file).conf == Config(width=2, inner=Inner(0.1))
    changed = Whole.load_from_checkpoint(file, inner=Inner(9.0), scale=2.0)
    assert changed.conf.inner == Inner(9.0)
    given = Config(width=2, inner=Inner(3.0))
    assert Whole.load_from_checkpoint(file, conf=given).conf is given


def test_namespace_and_untyped_objects_come_back(file: Path) -> None:
    """A Namespace is one again if so annotated; without annotation attributes still work."""
    save(ByNamespace(Namespace(a=1, b=[2])), file)
    assert ByNamespace.load_from_checkpoint(file).args == Namespace(a=1, b=[2])
    save(Untyped(Namespace(width=4)), file)
    assert Untyped.load_from_checkpoint(file).width == 4


def test_objects_among_arguments_come_back(file: Path) -> None:
    """A dataclass among the arguments is rebuilt if its class can be named here; dicts stay dicts."""
    save(Parts(Config(width=7), {"a": 1}), file)
    loaded = Parts.load_from_checkpoint(file)
    assert loaded.conf == Config(width=7)
    assert type(loaded.other) is dict
    save(Parts(None, Inner(0.2)), file)
    assert Parts.load_from_checkpoint(file).other == Inner(0.2)


def test_deep_classes_are_asked_for(file: Path) -> None:
    """A class deep in an argument is named by its path, before anything is built."""
    save(Parts(None, {"acts": [nn.ReLU]}), file)
    with pytest.raises(CheckpointError, match=r"other\.acts\[0\].*other=\.\.\."):
        Parts.load_from_checkpoint(file)
    assert Parts.load_from_checkpoint(file, other=1).other == 1


@pytest.mark.parametrize(
    ("name", "text"), [("h.yaml", "width: 3\nact: null\n"), ("h.csv", "key,value\nwidth,3\nact,relu\n")]
)
def test_hparams_file(tmp_path: Path, file: Path, name: str, text: str) -> None:
    """A file of hyper-parameters replaces those of the checkpoint."""
    save(Net(3), file)
    (tmp_path / name).write_text(text)
    loaded = Net.load_from_checkpoint(file, hparams_file=tmp_path / name, act=nn.Tanh)
    assert loaded.hparams.width == 3
    assert loaded.hparams.depth == 1


def test_hparams_file_errors(tmp_path: Path, file: Path) -> None:
    """A file of another kind, that is missing or that holds no names is refused."""
    save(Net(3), file)
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name, message in (("x.json", "must be a .yaml"), ("x.yaml", "no such file"), ("list.yaml", "map names")):
        with pytest.raises(ConfigError, match=message):
            Net.load_from_checkpoint(file, hparams_file=tmp_path / name)


class Loose(Net):
    """Net whose class is loose."""

    strict_loading = False


class Says(Net):
    """Net whose instances say themselves how strict they are."""

    def __init__(self, width: int, depth: int = 1, act: Any = nn.ReLU, says: bool | None = None) -> None:
        super().__init__(width, depth, act)
        self.strict_loading = says  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("kind", "says", "strict", "outcome"),
    [
        (Net, {}, None, "strict"),
        (Net, {}, True, "strict"),
        (Net, {}, False, "loose"),
        (Loose, {}, None, "loose"),
        (Loose, {}, True, "strict"),
        (Loose, {}, False, "loose"),
        (Says, {"says": None}, None, "strict"),
        (Says, {"says": None}, True, "strict"),
        (Says, {"says": None}, False, "loose"),
        (Says, {"says": False}, None, "loose"),
        (Says, {"says": False}, False, "loose"),
        (Says, {"says": False}, True, "conflict"),
        (Says, {"says": True}, None, "strict"),
        (Says, {"says": True}, False, "conflict"),
    ],
)
def test_strictness(file: Path, kind: type[Net], says: dict[str, Any], strict: bool | None, outcome: str) -> None:
    """Strict decides; without it the module's strict_loading, None of which is True; only an instance's contradicts."""
    save(Net(3, depth=1), file)

    def load() -> Any:
        return kind.load_from_checkpoint(file, depth=2, act=nn.ReLU, strict=strict, **says)

    if outcome == "loose":
        assert load().hparams.depth == 2
        return
    error, text = (
        (CheckpointError, "missing in the file") if outcome == "strict" else (ValueError, "strict must be what")
    )
    with pytest.raises(error, match=text):
        load()


def test_hooks_run_in_order(file: Path) -> None:
    """configure_model, then on_load_checkpoint, which may change the weights, then the weights."""
    calls: list[str] = []

    class Lazy(LightningModule):
        def configure_model(self) -> None:
            calls.append("configure_model")
            self.layer = nn.Linear(2, 2)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            calls.append("on_load_checkpoint")
            checkpoint["state_dict"]["layer.bias"] = torch.full((2,), 7.0)

    lazy = Lazy()
    lazy.configure_model()
    save(lazy, file)
    calls.clear()
    assert torch.equal(Lazy.load_from_checkpoint(file).layer.bias, torch.full((2,), 7.0))
    assert calls == ["configure_model", "on_load_checkpoint"]


def test_old_name_of_configure_model(file: Path) -> None:
    """Layers made under the old name of configure_model are there before the weights."""

    class Old(LightningModule):
        def configure_sharded_model(self) -> None:
            self.layer = nn.Linear(2, 2)

    old = Old()
    old.configure_sharded_model()
    save(old, file)
    assert torch.equal(Old.load_from_checkpoint(file).layer.weight, old.layer.weight)


def test_map_location_and_weights_only(file: Path) -> None:
    """map_location places the module; weights_only is accepted whatever it says."""
    save(Net(3), file)
    loaded = Net.load_from_checkpoint(file, map_location="cpu", weights_only=False, act=nn.ReLU)
    assert loaded.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_plain_weights_of_another_program(tmp_path: Path, name: str) -> None:
    """A file of weights alone builds a module, serves validation, cannot be resumed, and a damaged file is not one."""
    path, net = tmp_path / name, BoringModel()
    if path.suffix == ".pt":
        torch.save(net.state_dict(), path)
    else:
        save_file(net.state_dict(), path, metadata={"format": "pt"})
    assert torch.equal(BoringModel.load_from_checkpoint(path).layer.weight, net.layer.weight)
    loaded, trainer = BoringModel(), Trainer(max_epochs=1, logger=False, enable_progress_bar=False)
    trainer.validate(loaded, ckpt_path=path, verbose=False)
    assert torch.equal(loaded.layer.weight, net.layer.weight)
    with pytest.raises(CheckpointError, match=r"weights only cannot be resumed\. Load it with BoringModel\.load_from"):
        trainer.fit(BoringModel(), ckpt_path=path)
    ours = bytearray(save(Net(2), tmp_path / "ours.ckpt").read_bytes())
    ours[12] ^= 1
    (tmp_path / "ours.ckpt").write_bytes(ours)
    with pytest.raises(CheckpointError, match="the header is damaged"):
        Net.load_from_checkpoint(tmp_path / "ours.ckpt")


def test_empty_weights_warn(file: Path) -> None:
    """A checkpoint without weights, loaded loosely into a module that has some, warns."""
    save(Net(3), file, state_dict={})
    with pytest.warns(UserWarning, match="holds no weights"):
        Net.load_from_checkpoint(file, act=nn.ReLU, strict=False)


def test_nothing_named_in_the_file_is_called(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys with which other tools name code to run are dropped."""
    net = Net(3)
    net.hparams["_instantiator"] = "os.system"
    net.hparams["_class_path"] = "os.system"
    save(net, file)
    loaded = Net.load_from_checkpoint(file, act=nn.ReLU)
    assert "_instantiator" not in loaded.hparams


def test_datamodule(file: Path) -> None:
    """A data module is built from its own hyper-parameters; its state is not loaded."""

    class Data(LightningDataModule):
        loaded = False

        def __init__(self, batch_size: int, path: str = "a") -> None:
            super().__init__()
            self.save_hyperparameters()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.loaded = True

    data = Data(7)
    save(Net(3), file, **checkpoint_entries(data, "datamodule_"))
    twin = Data.load_from_checkpoint(file, path="b")
    assert twin.hparams == {"batch_size": 7, "path": "b"}
    assert not twin.loaded


# ---------------------------------------------------------------- weights


def test_load_weights_lists_what_does_not_fit() -> None:
    """Missing, unexpected and misshaped names are listed, with the file in front."""
    module = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    state = module.state_dict()
    del state["a.bias"]
    state["c.weight"] = torch.ones(1)
    state["b.weight"] = torch.ones(3, 3)
    with pytest.raises(CheckpointError) as error:
        load_weights(module, state, True, "x.ckpt")
    text = str(error.value)
    assert text.startswith("x.ckpt: the weights do not fit ModuleDict.")
    assert "1 missing in the file: a.bias" in text
    assert "1 not in the model: c.weight" in text
    assert "1 of another shape: b.weight (file (3, 3), model (2, 2))" in text
    with pytest.raises(CheckpointError, match=r"of another shape: b\.weight"):
        load_weights(module, state, strict=False)


def test_load_weights_lists_at_most_twenty() -> None:
    """At most 20 names are listed over all groups, with the number of the rest."""
    module = nn.ModuleList(nn.Linear(1, 1) for _ in range(30))
    other = {f"other.{i}": torch.ones(1) for i in range(5)}
    with pytest.raises(CheckpointError) as error:
        load_weights(module, other, True)
    text = str(error.value)
    assert "60 missing in the file: 0.weight" in text
    assert "and 41 more" in text
    assert "5 not in the model: other.0 and 4 more" in text
    assert "strict=False" in text


def test_load_weights_loose_and_renamed() -> None:
    """strict=False takes what fits; a hook that renames keys is honoured and not reported."""
    module = nn.Linear(2, 2)
    load_weights(module, {"bias": torch.full((2,), 3.0)}, strict=False)
    assert torch.equal(module.bias, torch.full((2,), 3.0))

    def rename(owner: Any, state: dict[str, Any], *_: Any) -> None:
        state["weight"] = state.pop("kernel")

    module.register_load_state_dict_pre_hook(rename)  # type: ignore[no-untyped-call]
    load_weights(module, {"kernel": torch.ones(2, 2), "bias": torch.ones(2)})
    assert torch.equal(module.weight, torch.ones(2, 2))
    with pytest.raises(CheckpointError) as error:
        load_weights(module, {"kernel": torch.ones(2, 2)})
    assert "1 missing in the file: bias" in str(error.value)
    assert "kernel" not in str(error.value).split("Got")[1]


def test_load_weights_into_meta_parameters() -> None:
    """A module on the meta device takes the tensors over."""
    with torch.device("meta"):
        module = nn.Linear(2, 2)
    load_weights(module, {"weight": torch.ones(2, 2), "bias": torch.ones(2)})
    assert torch.equal(module.weight, torch.ones(2, 2))
