"""Check validate, test and predict: names, results, modes, random state and means."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from quiet import QUIET
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lt_core import CombinedLoader, LightningModule, Trainer
from lt_interface.errors import ConfigError, MisconfigurationException


def trainer(**flags: Any) -> Trainer:
    return Trainer(**{**QUIET, "max_epochs": 1, **flags})


def loader(*values: float, batch_size: int = 2) -> DataLoader[Any]:
    return DataLoader(torch.tensor(values, dtype=torch.float32).view(-1, 1), batch_size=batch_size)  # type: ignore[arg-type]


class Net(LightningModule):
    """Module that logs the mean of each batch, and notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(1, 1), nn.Dropout(0.5))
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return x * 2

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.layer(batch).sum()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        self.seen.append((dataloader_idx, batch_idx, batch.flatten().tolist()))
        self.log("mean", batch.mean())
        return {"out": batch}

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self.validation_step(batch, batch_idx, dataloader_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class OneLoader(Net):
    """Module that takes no index of a loader, as modules with one loader do."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:  # type: ignore[override]
        self.seen.append((batch_idx, batch.flatten().tolist()))

    def test_step(self, batch: Any) -> Any:  # type: ignore[override]
        self.seen.append(batch.flatten().tolist())


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_means_are_weighted_by_samples(stage: str) -> None:
    """A last batch that is shorter counts by its samples: the mean is that over all of them."""
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    results = getattr(trainer(), stage)(Net(), loader(*values), verbose=False)
    assert results == [{"mean": pytest.approx(sum(values) / 5, rel=1e-12)}]
    assert isinstance(results[0]["mean"], float)


@pytest.mark.parametrize("batch_size", range(1, 9))
def test_every_sample_counts_once_whatever_the_batch_size(batch_size: int) -> None:
    """The mean of per-sample values does not depend on how they are cut into batches."""
    values = torch.linspace(-3, 7, 23, dtype=torch.float64)
    net = Net()
    (result,) = trainer().validate(net, DataLoader(values.view(-1, 1), batch_size=batch_size), verbose=False)  # type: ignore[arg-type]
    assert result["mean"] == pytest.approx(values.mean().item(), rel=1e-12)
    assert [v for _, _, batch in net.seen for v in batch] == values.tolist()


def test_a_list_of_loaders_names_its_metrics_by_number() -> None:
    """Each loader has its own dict, with /dataloader_idx_N behind the names; callback_metrics hold all."""
    net, run = Net(), trainer()
    results = run.validate(net, [loader(1, 2, 3), loader(10)], verbose=False)
    assert results == [{"mean/dataloader_idx_0": 2.0}, {"mean/dataloader_idx_1": 10.0}]
    assert net.seen == [(0, 0, [1.0, 2.0]), (0, 1, [3.0]), (1, 0, [10.0])]
    assert {k: float(v) for k, v in run.callback_metrics.items()} == {**results[0], **results[1]}


def test_a_dict_of_loaders_names_its_metrics_by_key() -> None:
    """The keys of a dict stand behind the names instead of numbers."""
    results = trainer().test(Net(), {"easy": loader(1), "hard": loader(5, 7)}, verbose=False)
    assert results == [{"mean/easy": 1.0}, {"mean/hard": 6.0}]


def test_metrics_without_a_loaders_name_belong_to_all() -> None:
    """add_dataloader_idx=False, and what is logged at the epoch's end, stands in every loader's result."""

    class Shared(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.log(f"own{dataloader_idx}", batch.mean(), add_dataloader_idx=False)
            self.log("mean", batch.mean())

        def on_validation_epoch_end(self) -> None:
            self.log("end", 7.0)

    results = trainer().validate(Shared(), [loader(1), loader(3)], verbose=False)
    shared = {"own0": 1.0, "own1": 3.0, "end": 7.0}
    assert results == [{**shared, "mean/dataloader_idx_0": 1.0}, {**shared, "mean/dataloader_idx_1": 3.0}]


def test_loaders_side_by_side() -> None:
    """A CombinedLoader of another mode gives one batch of all loaders at a time, as one loader."""

    class Pairs(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.seen.append((sorted(batch), dataloader_idx))
            self.log("sum", batch["a"].sum() + batch["b"].sum(), batch_size=1)

    net = Pairs()
    both = CombinedLoader({"a": loader(1, 2, 3), "b": loader(5)}, mode="min_size")
    assert trainer().validate(net, both, verbose=False) == [{"sum": 8.0}]
    assert net.seen == [(["a", "b"], 0)]


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize("data", [[loader(1), loader(2)], {"a": loader(1), "b": loader(2)}])
def test_a_step_that_can_not_tell_loaders_apart_is_refused(stage: str, data: Any) -> None:
    """With several loaders the step must take dataloader_idx; the error shows how to write it."""
    with pytest.raises(
        MisconfigurationException, match=r"dataloader_idx.*Write: def \w+_step\(self, batch, batch_idx, "
    ):
        getattr(trainer(), stage)(OneLoader(), data, verbose=False)


def test_a_step_that_can_not_tell_loaders_apart_is_refused_where_only_the_hook_knows() -> None:
    """The same holds where the loaders come from val_dataloader, in fit before the first batch."""

    class Several(OneLoader):
        def val_dataloader(self) -> Any:
            return [loader(1), loader(2)]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("no batch may run")

    with pytest.raises(MisconfigurationException, match="with several loaders"):
        trainer().fit(Several(), loader(1))


def test_shorter_steps_are_called_as_they_are() -> None:
    """With one loader a step may leave out dataloader_idx, and batch_idx too."""
    net = OneLoader()
    trainer().validate(net, loader(1, 2, 3), verbose=False)
    trainer().test(net, [loader(9)], verbose=False)
    assert net.seen == [(0, [1.0, 2.0]), (1, [3.0]), [9.0]]


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "fit"])
def test_modes_are_restored(stage: str) -> None:
    """Everything is in evaluation mode inside, and each part back in its own mode after, also after an error."""

    class Modes(Net):
        fail = False

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            assert not any(m.training for m in self.modules())
            if self.fail:
                raise RuntimeError("broken")

        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return self.validation_step(batch, batch_idx) or 1

    net = Modes()
    net.layer[1].eval()
    data = (loader(1), loader(1)) if stage == "fit" else (loader(1),)
    modes = [m.training for m in net.modules()]
    getattr(trainer(), stage)(net, *data)
    assert [m.training for m in net.modules()] == modes
    net.fail = True
    with pytest.raises(RuntimeError, match="broken"):
        getattr(trainer(), stage)(net, *data)
    assert [m.training for m in net.modules()] == modes


def test_own_mode_hooks_are_used() -> None:
    """on_validation_model_eval and on_validation_model_train replace what the trainer does."""

    class Own(Net):
        def on_validation_model_eval(self) -> None:
            self.seen.append("eval")

        def on_validation_model_train(self) -> None:
            self.seen.append("train")

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            self.seen.append(self.training)

    net = Own()
    trainer().validate(net, loader(1), verbose=False)
    assert net.seen == ["eval", True, "train"]


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "fit"])
@pytest.mark.parametrize("inference", [True, False])
def test_gradients_are_off(stage: str, inference: bool) -> None:
    """Entry points run under inference mode, unless it is switched off; validation inside fit under no_grad."""
    seen: list[Any] = []

    class Looks(Net):
        def val_dataloader(self) -> Any:
            return self.predict_dataloader()

        def test_dataloader(self) -> Any:
            return self.predict_dataloader()

        def predict_dataloader(self) -> Any:
            assert not torch.is_inference_mode_enabled()  # what is made here may be trained on later
            return loader(1)

        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            seen.append((torch.is_inference_mode_enabled(), torch.is_grad_enabled()))
            return 1

        predict_step = validation_step

    getattr(trainer(inference_mode=inference, num_sanity_val_steps=0), stage)(
        Looks(), *([loader(1)] if stage == "fit" else [])
    )
    assert seen == [(inference and stage != "fit", False)]
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_evaluation_leaves_the_random_state_alone(stage: str) -> None:
    """Python's, NumPy's and torch's random state is the same after as before, whatever the steps and loaders draw."""

    class Draws(Net):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            random.random()
            np.random.rand()
            torch.rand(1)

    def state() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]

    net = Draws()
    before = state()
    getattr(trainer(), stage)(net, loader(1, 2, 3), verbose=False)
    assert state() == before


def test_how_often_one_validates_does_not_change_the_training() -> None:
    """The weights after training with dropout are the same with validation after every batch and with none."""

    def weights(**flags: Any) -> Tensor:
        torch.manual_seed(3)
        net = Net()
        train: Any = DataLoader(torch.ones(8, 1), shuffle=True)  # type: ignore[arg-type]
        trainer(max_epochs=2, **flags).fit(net, train, DataLoader(torch.ones(4, 1)))  # type: ignore[arg-type]
        return next(net.parameters()).detach()

    none = weights(limit_val_batches=0)
    assert torch.equal(none, weights(val_check_interval=1))
    assert torch.equal(none, weights(num_sanity_val_steps=-1, check_val_every_n_epoch=2))


def test_results_are_printed_unless_told_not_to(capsys: pytest.CaptureFixture[str]) -> None:
    """verbose=True, the default, prints a table of the metrics."""
    trainer().validate(Net(), loader(1, 2))
    printed = capsys.readouterr().out
    assert "mean" in printed
    assert "1.5" in printed
    trainer().validate(Net(), loader(1, 2), verbose=False)
    assert capsys.readouterr().out == ""


def test_nothing_logged_gives_empty_results() -> None:
    """Each loader has its dict, also where nothing was logged."""
    assert trainer().test(OneLoader(), loader(1), verbose=False) == [{}]
    assert trainer(limit_test_batches=0).test(Net(), [loader(1), loader(2)], verbose=False) == [{}, {}]


@pytest.mark.parametrize(("limit", "counts"), [(1, [1, 1]), (0.5, [2, 1]), (2, [2, 2]), (9, [4, 2]), (1.0, [4, 2])])
def test_limits_hold_for_each_loader(limit: float, counts: list[int]) -> None:
    """Numbers and fractions are applied to every loader alone."""
    net = Net()
    trainer(limit_val_batches=limit).validate(net, [loader(*range(8)), loader(*range(4))], verbose=False)
    assert [sum(1 for index, *_ in net.seen if index == i) for i in range(2)] == counts


def test_the_model_of_the_last_run_is_taken_where_none_is_given() -> None:
    """validate() and test() without a model go on with the one of the last run, and its loaders' hooks."""

    class Owns(Net):
        def test_dataloader(self) -> Any:
            return loader(4)

    run, net = trainer(), Owns()
    with pytest.raises(TypeError, match=r"Write trainer.validate\(model"):
        run.validate(dataloaders=loader(1))
    run.fit(net, loader(1), loader(2))
    assert run.validate(dataloaders=loader(3), verbose=False) == [{"mean": 3.0}]
    assert run.test(verbose=False) == [{"mean": 4.0}]


def test_counters_are_fits_own() -> None:
    """Evaluation changes neither global_step nor current_epoch."""
    run, net = trainer(limit_val_batches=0, max_epochs=2), Net()
    run.fit(net, loader(1, 2, 3))
    run.validate(net, loader(1), verbose=False)
    run.predict(net, loader(1))
    assert (run.current_epoch, run.global_step) == (2, 4)


# ------------------------------------------------------------------ predict


def values(predictions: Any) -> Any:
    return [values(p) for p in predictions] if isinstance(predictions, list) else predictions.flatten().tolist()


def test_predictions_of_one_loader_are_a_flat_list() -> None:
    """Without a predict_step forward is called on each batch."""
    predictions = trainer().predict(Net(), loader(1, 2, 3))
    assert values(predictions) == [[2.0, 4.0], [6.0]]


def test_predictions_of_several_loaders_are_lists_in_a_list() -> None:
    """Each loader has its list, whether it has one batch or many."""

    class Adds(Net):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
            return batch + 10 * dataloader_idx

    data = [loader(1, 2, 3), loader(4)]
    assert values(trainer().predict(Adds(), data)) == [[[1.0, 2.0], [3.0]], [[14.0]]]
    assert values(trainer().predict(Adds(), {"a": data[1], "b": data[0]})) == [[[4.0]], [[11.0, 12.0], [13.0]]]
    assert values(trainer().predict(Adds(), [data[1]])) == [[4.0]]


def test_predictions_may_be_anything_and_are_not_kept_on_request() -> None:
    """Nested predictions come back as they are; return_predictions=False, or a limit of 0, gives None."""

    class Dicts(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.seen.append(batch_idx)
            return {"x": batch, "n": batch_idx}

    net = Dicts()
    predictions = trainer().predict(net, loader(1))
    assert predictions == [{"x": torch.ones(1, 1), "n": 0}]
    assert not predictions[0]["x"].requires_grad
    assert trainer().predict(net, loader(1), return_predictions=False) is None
    assert trainer(limit_predict_batches=0).predict(net, loader(1)) is None
    assert net.seen == [0, 0]


def test_a_predict_step_without_a_return_is_warned_of() -> None:
    """None is allowed as a prediction, with one warning."""

    class Forgets(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            pass

    with pytest.warns(UserWarning, match="predict_step returned None") as given:
        assert trainer().predict(Forgets(), loader(1, 2, 3)) == [None, None]
    assert len(given) == 1


def test_predict_draws_from_the_users_random_state() -> None:
    """Sampling models give other predictions at each call, and the same under the same seed."""

    class Samples(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.rand(3)

    torch.manual_seed(1)
    first, second = (trainer().predict(Samples(), loader(1)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert not torch.equal(first[0], second[0])


def test_self_log_is_refused_in_predict() -> None:
    """There are no metrics in predict, and the error names the step."""

    class Logs(Net):
        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("x", 1.0)

    with pytest.raises(MisconfigurationException, match=r"self\.log.*predict_step"):
        trainer().predict(Logs(), loader(1))


def test_empty_loaders_are_refused() -> None:
    """A loader without a batch is an error that names the loader."""
    with pytest.raises(ConfigError, match=r"val_dataloader: a loader must have at least one batch"):
        trainer().validate(Net(), DataLoader([]), verbose=False)  # type: ignore[arg-type]
