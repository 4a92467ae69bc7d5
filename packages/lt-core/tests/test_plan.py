"""What is wrong with a module and its data, found before anything starts."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lt_core.config.flags import parse
from lt_core.datamodule import LightningDataModule
from lt_core.module import LightningModule
from lt_core.run.checks import compiled_methods, module_problems, module_remarks, read_inputs, unwrap
from lt_core.state.progress import TrainerFn

BATCHES = [torch.zeros(2, 3)]
STAGES = ["fit", "validate", "test", "predict"]


class Net(LightningModule):
    """Module with all that every entry point needs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        return self(batch).sum()

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        """Take the loader's index; this is a module's step and no test."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters())


class Empty(LightningModule):
    """Module that defines nothing."""


class Data(LightningDataModule):
    """Data of every stage, which fails if anybody asks for it."""

    def train_dataloader(self):
        raise AssertionError("no hook may run")

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


def problems(module, stage="fit", loaders=BATCHES, datamodule=None, val_loaders=None, **flags):
    """Return the lines of the report."""
    config = parse({"max_epochs": 1, **flags})
    return [str(p) for p in module_problems(read_inputs(module, loaders, val_loaders, datamodule), stage, config)]


def remarks(module, stage="fit", loaders=BATCHES, datamodule=None, val_loaders=None, **flags):
    """Return the remarks."""
    return module_remarks(read_inputs(module, loaders, val_loaders, datamodule), stage, parse(flags))


class TestModel:
    @pytest.mark.parametrize("stage", [*STAGES, *TrainerFn])
    def test_a_whole_module_has_no_problem(self, stage):
        """A module with every step passes for every entry point, with loaders or a data module."""
        assert problems(Net(), stage) == []
        assert problems(Net(), stage, loaders=None, datamodule=Data()) == []

    def test_what_is_no_module(self):
        """Anything but a LightningModule is refused with what to write instead."""
        foreign = type("LightningModule", (nn.Module,), {"__module__": "pytorch_lightning.core.module"})
        theirs = type("Theirs", (foreign,), {})
        rule = "the model must be an instance of lt_core.LightningModule"
        said = {
            None: f"Trainer.fit(None): {rule}. Write trainer.fit(model",
            Net: f"Trainer.fit(Net): {rule}. Pass an instance: Net(...).",
            nn.Linear(1, 1): "It is a plain torch module: put it into a LightningModule",
            theirs(): "It is a module of pytorch_lightning.core.module: write `from lt_core import LightningModule`",
            Data(): "It is a data module: write trainer.fit(model, datamodule=...).",
            3: "Subclass it: `from lt_core import LightningModule`.",
        }
        for model, text in said.items():
            (line,) = problems(model)
            assert text in line

    def test_a_wrong_model_is_a_type_error(self):
        """A model of the wrong kind is a problem of type."""
        (problem,) = module_problems(read_inputs(None, BATCHES), "validate", parse({}))
        assert problem.is_type

    def test_compiled_modules_are_looked_into(self):
        """A compiled module is checked as the module it wraps, and its methods can be had compiled."""
        net = Net()
        compiled = torch.compile(net, backend="eager")
        assert unwrap(compiled) is net
        assert unwrap(net) is net
        assert problems(compiled) == []
        assert "Empty.training_step" in problems(torch.compile(Empty(), backend="eager"))[0]
        assert compiled_methods(net, ["training_step"]) == {}
        methods = compiled_methods(compiled, ["training_step", "no_such_step"])
        assert list(methods) == ["training_step"]
        assert torch.equal(methods["training_step"](BATCHES[0], 0), net.training_step(BATCHES[0], 0))

    def test_a_plain_compiled_module_is_refused(self):
        """A compiled torch module is no LightningModule either."""
        assert "plain torch module" in problems(torch.compile(nn.Linear(1, 1), backend="eager"))[0]


class TestSteps:
    def test_fit_needs_step_optimizers_and_data(self):
        """All that training lacks is reported at once, with what to write."""
        lines = problems(Empty(), loaders=None)
        assert [line.split(":")[0] for line in lines] == [
            "Empty.training_step",
            "Trainer.fit",
            "Empty.configure_optimizers",
        ]
        assert lines[0].endswith("Write: def training_step(self, batch, batch_idx).")
        assert "train_dataloaders=..." in lines[1]
        assert "def configure_optimizers(self)" in lines[2]

    @pytest.mark.parametrize(
        ("stage", "step"), [("validate", "validation_step"), ("test", "test_step"), ("predict", "predict_step")]
    )
    def test_other_stages_need_their_step(self, stage, step):
        """Each entry point needs its own step."""
        (line,) = problems(Empty(), stage)
        assert line.startswith(f"Empty.{step}: Trainer.{stage} needs it, and it is not defined.")

    def test_forward_is_enough_to_predict(self):
        """Without predict_step the model's forward predicts."""

        class Forward(LightningModule):
            def forward(self, x):
                return x

        assert problems(Forward(), "predict") == []

    def test_a_misspelt_step_is_found(self):
        """The nearest of the module's own names is suggested; hooks that exist are not."""

        class Typo(Net):
            traning_step = Net.training_step
            training_step = LightningModule.training_step

        assert 'Did you mean "traning_step"?' in problems(Typo())[0]
        assert "Did you mean" not in problems(type("Half", (Empty,), {"validation_step": Net.validation_step})())[0]

    def test_steps_on_the_instance_count(self):
        """A step that was set on the instance is there."""
        module = Empty()
        module.validation_step = lambda batch: None
        assert problems(module, "validate") == []

    @pytest.mark.parametrize(
        "step",
        [
            lambda self, batch: 0,
            lambda self, x, i: 0,
            lambda self, *args: 0,
            lambda self, batch, batch_idx, extra=1: 0,
            lambda self, *args, **kwargs: 0,
        ],
    )
    def test_forms_of_training_step(self, step):
        """A training step takes the batch, and its index if it likes, under any names."""
        assert problems(type("Form", (Net,), {"training_step": step})()) == []

    @pytest.mark.parametrize(
        "step",
        [
            lambda self: 0,
            lambda self, batch, batch_idx, hidden: 0,
            lambda self, batch, *, mask: 0,
            3,
        ],
    )
    def test_training_steps_that_can_not_be_called(self, step):
        """A training step that our call cannot bind is refused with the right signature."""
        (line,) = problems(type("Form", (Net,), {"training_step": step})())
        assert line.startswith("Form.training_step: ")
        assert line.endswith("Write: def training_step(self, batch, batch_idx).")

    def test_optimizer_idx(self):
        """A step for each optimizer is refused with what replaced it."""

        class Old(Net):
            def training_step(self, batch, batch_idx, optimizer_idx):
                return 0

        (line,) = problems(Old())
        assert "Got def training_step(self, batch, batch_idx, optimizer_idx)." in line
        assert "self.automatic_optimization = False" in line

    def test_validation_step_is_checked_in_fit(self):
        """Fit checks the validation step too, unless validation is off."""

        class Bad(Net):
            def validation_step(self):
                pass

        assert len(problems(Bad())) == 1
        assert problems(Bad(), limit_val_batches=0) == []

    def test_several_loaders_need_their_index(self):
        """With several loaders an evaluation step must take dataloader_idx; a list of batches is one loader."""
        two = [DataLoader(TensorDataset(torch.zeros(4, 3))) for _ in range(2)]
        (line,) = problems(Net(), "validate", loaders=two)
        assert "with several loaders a step must take dataloader_idx" in line
        assert len(problems(Net(), val_loaders={"a": two[0], "b": two[1]})) == 1
        assert problems(Net(), "test", loaders=two) == []
        assert problems(Net(), "validate", loaders=two[:1]) == []
        assert problems(Net(), "validate", loaders=BATCHES * 3) == []

    def test_optimizers_take_no_argument(self):
        """configure_optimizers with a required argument is refused."""
        bad = type("Bad", (Net,), {"configure_optimizers": lambda self, lr: None})
        assert problems(bad()) == [
            "Bad.configure_optimizers: the trainer calls this without arguments. Write: def configure_optimizers(self)."
        ]


class TestRemoved:
    @pytest.mark.parametrize(
        "name",
        ["training_epoch_end", "validation_epoch_end", "test_epoch_end", "training_step_end", "tbptt_split_batch"],
    )
    def test_removed_hooks_are_refused(self, name):
        """A hook that would never run any more is refused with what replaced it."""
        (line,) = problems(type("Old", (Net,), {name: lambda self, outputs: None})())
        assert line.startswith(f"Old.{name}: this hook is not in this version, and would never run. ")

    def test_both_names_of_configure_model(self):
        """The old and the new name of configure_model exclude each other."""
        both = {name: lambda self: None for name in ("configure_model", "configure_sharded_model")}
        (line,) = problems(type("Both", (Net,), both)())
        assert line.startswith("Both.configure_sharded_model: ")

    def test_renamed_and_misspelt_hooks_are_remarked(self):
        """A method that looks like a hook and never runs is remarked, the user's own names are not."""
        names = ["on_epoch_end", "on_training_epoch_end", "on_train_epoch_end", "own_name", "on_training_done"]
        lines = remarks(type("Odd", (Net,), {n: lambda self: None for n in names})(), val_loaders=BATCHES)
        assert lines == [
            "Odd.on_epoch_end: the trainer never calls this; the hook is on_train_epoch_end today.",
            'Odd.on_training_epoch_end: the trainer never calls this. Did you mean "on_train_epoch_end"?',
        ]


class TestData:
    def test_a_data_module_in_the_loaders_place(self):
        """A data module is taken in the place of the loaders."""
        data = Data()
        assert problems(Net(), loaders=data) == []
        given = read_inputs(Net(), data)
        assert given.datamodule is data
        assert given.loaders is None

    def test_loaders_and_data_module_exclude_each_other(self):
        """Loaders together with a data module are refused, wherever they were given."""
        assert problems(Net(), datamodule=Data()) == [
            "Trainer.fit(train_dataloaders, datamodule): loaders and a data module exclude each other. "
            "Leave out train_dataloaders, or datamodule."
        ]
        assert "Trainer.fit(val_dataloaders, datamodule)" in problems(Net(), loaders=Data(), val_loaders=BATCHES)[0]
        assert "Trainer.test(dataloaders, datamodule)" in problems(Net(), "test", datamodule=Data())[0]

    @pytest.mark.parametrize("stage", STAGES)
    def test_no_data(self, stage):
        """An entry point without data is refused, unless its limit is zero."""
        (line,) = problems(Net(), stage, loaders=None)
        assert line.startswith(f"Trainer.{stage}: there is no ")
        assert len(problems(Net(), stage, loaders=None, datamodule=LightningDataModule())) == 1
        limit = {"fit": "train", "validate": "val"}.get(stage, stage)
        assert problems(Net(), stage, loaders=None, **{f"limit_{limit}_batches": 0}) == []

    def test_the_module_may_give_its_data(self):
        """The module's own loader hook is enough, and is not called."""
        own = type("Own", (Net,), {"train_dataloader": Data.train_dataloader})
        assert problems(own(), loaders=None) == []

    def test_loader_hooks_take_no_argument(self):
        """A loader hook that cannot be called is refused, unless loaders were given."""
        bad = type("Bad", (Data,), {"train_dataloader": lambda self, size: None})()
        (line,) = problems(Net(), loaders=None, datamodule=bad)
        assert line.startswith("Bad.train_dataloader: the trainer calls this without arguments.")
        own = type("Own", (Net,), {"train_dataloader": lambda self, size: None})
        assert len(problems(own(), loaders=None)) == 1
        assert problems(own()) == []

    def test_a_wrong_data_module(self):
        """What is no data module is refused, with the right import for a foreign one."""
        foreign = type("LightningDataModule", (), {"__module__": "lightning.pytorch.core.datamodule"})
        assert "from lt_core import LightningDataModule" in problems(Net(), loaders=None, datamodule=foreign())[0]
        assert "Pass an instance: Data(...)." in problems(Net(), loaders=None, datamodule=Data)[0]
        assert "trainer.fit(model, train_dataloaders=...)" in problems(Net(), loaders=None, datamodule=[1])[0]
        assert "this is no source of batches" in problems(Net(), loaders=foreign())[0]

    @pytest.mark.parametrize("source", [3, "data", DataLoader, LightningDataModule])
    def test_what_gives_no_batches(self, source):
        """A number, a text and a class are no data."""
        (line,) = problems(Net(), loaders=source)
        assert "this is no source of batches" in line

    def test_validation_that_will_not_run_is_remarked(self):
        """A validation step without loaders, and loaders without the step, are remarked."""
        assert "no val_dataloader" in remarks(Net())[0]
        no_step = type("NoStep", (Net,), {"validation_step": LightningModule.validation_step})
        assert "no validation_step" in remarks(no_step(), val_loaders=BATCHES)[0]
        assert remarks(Net(), limit_val_batches=0) == []
        assert remarks(Net(), val_loaders=BATCHES) == []
        assert remarks(Net(), "test") == []

    def test_a_dataset_is_remarked(self):
        """A dataset in the place of a loader is remarked: its samples would be batches."""
        (line,) = remarks(Net(), "test", loaders=TensorDataset(torch.zeros(4, 3)))
        assert "Wrap it: DataLoader(dataset, batch_size=...)." in line


class TestManual:
    def test_flags_of_automatic_optimization(self):
        """Clipping and accumulation by flag are refused for a module that optimizes by hand."""
        net = Net()
        net.automatic_optimization = False
        lines = problems(net, gradient_clip_val=0.5, accumulate_grad_batches=4)
        assert [line.split(":")[0] for line in lines] == [
            "Trainer(accumulate_grad_batches=4)",
            "Trainer(gradient_clip_val=0.5)",
        ]
        assert problems(net, gradient_clip_val=0) == []
        assert problems(net, "validate", gradient_clip_val=0.5) == []
