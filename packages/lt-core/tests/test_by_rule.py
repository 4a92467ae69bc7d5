"""Several optimizers as one by rules: compared with two by hand, resumed, extended, and refused."""

from __future__ import annotations

import copy
import doctest
import pickle
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet import QUIET, SILENT
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from lt_core import LightningModule, Trainer
from lt_core.callbacks import LearningRateMonitor
from lt_core.optim import ByRule, Rule
from lt_interface import decides_by_closure
from lt_interface.errors import CheckpointError, ConfigError, ConfigTypeError

MATRICES = Rule(dims=2, exclude="embed|head", optimizer=partial(SGD, lr=0.1, momentum=0.9))
NO_DECAY = Rule(dims=1, weight_decay_factor=0)
REST = partial(AdamW, lr=0.01, weight_decay=0.1)


class Net(LightningModule):
    """Network with an embedding, hidden layers and a head.

    Args:
        rules: The rules of its optimizer.
        default: What makes the optimizer of the rest.
    """

    def __init__(self, rules: Any = (MATRICES, NO_DECAY), default: Any = REST) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(8, 4)
        self.hidden = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 8)
        self.rules, self.default = rules, default

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.head(self.hidden(self.embed(batch))), (batch + 1) % 8)

    def configure_optimizers(self) -> Any:
        optimizer = ByRule(self, self.rules, self.default)
        schedule = LambdaLR(optimizer, lambda step: 0.9**step)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader() -> DataLoader[Any]:
    """Return four batches of eight."""
    return DataLoader(torch.arange(32) % 8, batch_size=8)  # type: ignore[arg-type]


def names_by_group(optimizer: Any, module: nn.Module) -> list[list[str]]:
    """Return the names of each group's parameters."""
    names = {id(p): name for name, p in module.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def by_hand(steps: int, clip: float = 0.5) -> dict[str, Tensor]:
    """Return the weights after some steps of a loop with two optimizers and two schedules."""
    net = Net()
    named = dict(net.named_parameters())
    matrices = [named.pop("hidden.0.weight"), named.pop("hidden.2.weight")]
    flat = [p for p in named.values() if p.ndim == 1]
    rest = [p for p in named.values() if p.ndim > 1]
    one = SGD(matrices, lr=0.1, momentum=0.9)
    two = AdamW([{"params": rest}, {"params": flat, "weight_decay": 0.0}], lr=0.01, weight_decay=0.1)
    schedules = [LambdaLR(each, lambda step: 0.9**step) for each in (one, two)]
    batches = list(loader())
    for step in range(steps):
        one.zero_grad()
        two.zero_grad()
        net.training_step(batches[step % 4], step).backward()
        nn.utils.clip_grad_norm_([*matrices, *rest, *flat], clip)
        one.step()
        two.step()
        for schedule in schedules:
            schedule.step()
    return net.state_dict()


def assert_same(one: Any, two: Any) -> None:
    """Compare weights bit for bit."""
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def test_a_fit_is_two_optimizers_by_hand_to_the_bit() -> None:
    """One automatic optimizer with one schedule and one clipping trains as two that a loop steps by hand."""
    net = Net()
    trainer = Trainer(max_epochs=2, gradient_clip_val=0.5, **QUIET)
    trainer.fit(net, loader())
    assert_same(net.state_dict(), by_hand(8))
    optimizer = trainer.optimizers[0]
    assert not decides_by_closure(optimizer)
    assert names_by_group(optimizer, net) == [
        ["hidden.0.weight", "hidden.2.weight"],
        ["embed.weight", "head.weight"],
        ["hidden.0.bias", "hidden.1.weight", "hidden.1.bias", "hidden.2.bias", "head.bias"],
    ]
    assert [round(group["lr"] / 0.9**8, 6) for group in optimizer.param_groups] == [0.1, 0.01, 0.01]


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_matrices_go_to_muon() -> None:
    """Hidden matrices under Muon and the rest under AdamW are what both do alone."""
    net, twin = Net(), Net()
    optimizer: Any = ByRule(
        net, [Rule(dims=2, exclude="embed|head", optimizer=partial(torch.optim.Muon, lr=0.02))], REST
    )
    hidden = [twin.hidden[0].weight, twin.hidden[2].weight]
    others = [p for p in twin.parameters() if not any(p is h for h in hidden)]
    pair: list[Any] = [torch.optim.Muon(hidden, lr=0.02), REST(others)]
    for batch in loader():
        for module, steps in ((net, [optimizer]), (twin, pair)):
            module.zero_grad()
            module.training_step(batch, 0).backward()
            for each in steps:
                each.step()
    assert_same(net.state_dict(), twin.state_dict())


def test_a_cut_run_resumes_to_the_bit(tmp_path: Path) -> None:
    """A run that ends inside an epoch goes on from its checkpoint as if it had not ended: states, rates, weights."""
    net, whole = Net(), Net()
    trainer = Trainer(max_epochs=2, gradient_clip_val=0.5, **QUIET)
    trainer.fit(whole, loader())
    cut = Trainer(max_steps=6, gradient_clip_val=0.5, **QUIET)
    cut.fit(Net(), loader())
    cut.save_checkpoint(tmp_path / "cut.ckpt")
    resumed = Trainer(max_epochs=2, gradient_clip_val=0.5, **QUIET)
    resumed.fit(net, loader(), ckpt_path=tmp_path / "cut.ckpt")
    assert_same(net.state_dict(), whole.state_dict())
    for one, two in zip(net.parameters(), whole.parameters(), strict=True):
        mine, theirs = (t.optimizers[0].state[p] for t, p in ((resumed, one), (trainer, two)))
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_state_goes_round_and_copies_train_alike() -> None:
    """A loaded state, a deep copy and a pickled copy have the groups and states, and step to the same weights."""
    net = Net()
    optimizer = ByRule(net, net.rules, REST)
    net.training_step(torch.arange(8), 0).backward()
    optimizer.step()
    other = Net()
    other.load_state_dict(net.state_dict())
    loaded = ByRule(other, net.rules, REST)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied, unpickled = copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    for each in (optimizer, loaded, copied, unpickled):
        held = [p for group in each.param_groups for p in group["params"]]
        for parameter, grad in zip(held, grads, strict=True):
            parameter.grad = grad.clone()  # type: ignore[union-attr]
        each.step()
    rows = [[p for group in each.param_groups for p in group["params"]] for each in (loaded, copied, unpickled)]
    for row in rows:
        mine = [p for group in optimizer.param_groups for p in group["params"]]
        assert all(torch.equal(one, two) for one, two in zip(mine, row, strict=True))
    assert str(copied) == str(optimizer)


def test_a_state_of_other_rules_is_refused() -> None:
    """What other rules saved, or a plain optimizer, is one error, and nothing is loaded."""
    net = Net()
    optimizer = ByRule(net, net.rules, REST)
    for other in (ByRule(net, [NO_DECAY], REST), AdamW(net.parameters())):
        with pytest.raises(CheckpointError, match=r"the groups must be those of the same rules\. Got .* instead of"):
            optimizer.load_state_dict(other.state_dict())


def test_each_setting_comes_from_the_first_rule_that_gives_it() -> None:
    """Rules add up: the optimizer from one, a factor from another; of two that give the same the upper one counts."""
    rules = [
        Rule("hidden.0", lr_factor=0.5),
        Rule("hidden", lr_factor=0.1, options={"eps": 1e-6}),
        Rule(types=nn.LayerNorm, optimizer=partial(SGD, lr=1.0), options={"eps": 0}),
        NO_DECAY,
    ]
    net = Net()
    with pytest.raises(ConfigError, match=r"SGD has no eps\. Got options\['eps'\]"):
        ByRule(net, rules, REST)
    rules[1:3] = [
        Rule("hidden", exclude="*.1", lr_factor=0.1, options={"eps": 1e-6}),
        Rule(types="torch.nn.LayerNorm", optimizer=partial(SGD, lr=1.0)),
    ]
    optimizer = ByRule(net, rules, REST)
    found = {
        name: (group["optimizer"], group["lr"], group["weight_decay"], group.get("eps"))
        for group, names in zip(optimizer.param_groups, names_by_group(optimizer, net), strict=True)
        for name in names
    }
    assert found["hidden.0.weight"] == ("AdamW", 0.005, 0.1, 1e-6)
    assert found["hidden.0.bias"] == ("AdamW", 0.005, 0.0, 1e-6)
    assert found["hidden.1.weight"] == ("SGD", 1.0, 0.0, None)
    assert found["hidden.2.weight"] == ("AdamW", 0.001, 0.1, 1e-6)
    assert found["embed.weight"] == ("AdamW", 0.01, 0.1, 1e-8)
    assert sorted(found) == sorted(name for name, _ in net.named_parameters())


def test_a_shared_parameter_goes_by_all_of_its_names() -> None:
    """Weights that embedding and head share are excluded by either name, and are in one group."""
    net = Net()
    net.head.weight = net.embed.weight
    optimizer = ByRule(net, [Rule(dims=2, exclude="head", optimizer=SGD)], AdamW)
    assert names_by_group(optimizer, net)[0] == ["hidden.0.weight", "hidden.2.weight"]


def test_print_shows_what_goes_where() -> None:
    """The table has a row for each group: its optimizer, rates, sizes and parameters."""
    net = Net()
    assert str(ByRule(net, net.rules, REST)).splitlines() == [
        "ByRule: 9 parameters in 3 groups",
        "  SGD        lr 0.1   weight_decay 0    32 values in 2: hidden.0.weight, hidden.2.weight",
        "  AdamW      lr 0.01  weight_decay 0.1  64 values in 2: embed.weight, head.weight",
        "  AdamW_wd0  lr 0.01  weight_decay 0    24 values in 5: hidden.0.bias, hidden.1.weight, hidden.1.bias and 2 more",  # noqa: E501
    ]


def test_added_parameters_go_by_the_rules() -> None:
    """Parameters that are unfrozen later go where the rules put them, with the options that the group itself gives."""
    net = Net()
    net.hidden.requires_grad_(False)
    optimizer = ByRule(net, net.rules, REST)
    assert names_by_group(optimizer, net) == [["embed.weight", "head.weight"], ["head.bias"]]
    net.hidden.requires_grad_(True)
    optimizer.add_param_group({"params": net.hidden[0].parameters(), "lr": 0.3})
    optimizer.add_param_group({"params": net.hidden[1:].parameters()})
    rows = [(group["optimizer"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups[2:]]
    assert rows == [("SGD", 0.3, 0), ("AdamW", 0.3, 0.0), ("AdamW", 0.01, 0.0), ("SGD", 0.1, 0)]
    assert len({group["name"] for group in optimizer.param_groups}) == 6
    with pytest.raises(ConfigError, match="each parameter must be in one group"):
        optimizer.add_param_group({"params": [net.head.weight]})
    before = net.hidden[2].weight.clone()
    net.training_step(torch.arange(8), 0).backward()
    optimizer.step()
    assert torch.allclose(net.hidden[2].weight, before - 0.1 * net.hidden[2].weight.grad)  # type: ignore[operator]
    again = ByRule(Net(), net.rules, REST)
    again.param_groups.clear()
    for group in optimizer.param_groups:  # as a run from other processes comes back
        again.add_param_group({**group, "params": [nn.Parameter(p.detach().clone()) for p in group["params"]]})
    assert [group["name"] for group in again.param_groups] == [group["name"] for group in optimizer.param_groups]
    moved = again.param_groups[-1]["params"][0]
    before, moved.grad = moved.detach().clone(), torch.ones_like(moved)
    again.step()
    assert torch.allclose(moved, before - 0.1)
    again.load_state_dict(optimizer.state_dict())


def test_one_closure_call_hooks_and_clearing() -> None:
    """A closure is called once and its loss returned; step hooks fire once; zero_grad clears all parts."""
    net = Net()
    optimizer = ByRule(net, net.rules, REST)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))

    def closure() -> Tensor:
        calls.append("closure")
        optimizer.zero_grad()
        loss: Tensor = net.training_step(torch.arange(8), 0)
        loss.backward()
        return loss

    assert optimizer.step(closure).requires_grad
    assert calls == ["before", "closure", "after"]
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert set(optimizer.defaults) >= {"lr", "weight_decay"}
    assert "betas" not in optimizer.defaults  # what not all parts know


def test_groups_are_logged_under_names(tmp_path: Path) -> None:
    """LearningRateMonitor logs each group by the name of its optimizer and factors."""
    trainer = Trainer(
        max_steps=2, log_every_n_steps=1, callbacks=[LearningRateMonitor()], default_root_dir=tmp_path, **SILENT
    )
    trainer.fit(Net(), loader())
    assert {"lr-ByRule/SGD", "lr-ByRule/AdamW", "lr-ByRule/AdamW_wd0"} <= set(trainer.callback_metrics)


def test_mappings_are_rules_too() -> None:
    """Rules and optimizers as a configuration file holds them do the same."""
    rules = [
        {
            "dims": 2,
            "exclude": "embed|head",
            "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
        },
        {"dims": 1, "weight_decay_factor": 0},
    ]
    default = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01, "weight_decay": 0.1}}
    net = Net()
    assert str(ByRule(net, rules, default)) == str(ByRule(net, net.rules, REST))  # type: ignore[arg-type]


def test_parameters_without_a_module() -> None:
    """Named parameters serve patterns; bare ones serve rules on dimensions, and no more."""
    net = Net()
    optimizer = ByRule(net.named_parameters(), net.rules, REST)
    assert names_by_group(optimizer, net) == names_by_group(ByRule(net, net.rules, REST), net)
    assert len(ByRule(net.parameters(), [NO_DECAY], REST).param_groups) == 2
    with pytest.raises(ConfigError, match=r"rules ask for names .* Give the module itself"):
        ByRule(net.parameters(), net.rules, REST)
    with pytest.raises(ConfigError, match="rules ask for types"):
        ByRule(net.named_parameters(), [Rule(types=nn.Linear, lr_factor=2)], REST)


BAD: dict[str, tuple[list[Any], Any, str]] = {
    "near": ([Rule("embde", lr_factor=2)], REST, 'a rule must mean a parameter.*Did you mean "embed"'),
    "far": ([Rule("xyz", lr_factor=2)], REST, "There are .*bias, embed"),
    "type": ([Rule(types="Liner", lr_factor=2)], REST, 'Did you mean "Linear"'),
    "other package": ([Rule(types="mine.Linear", lr_factor=2)], REST, "a rule must mean a parameter"),
    "class": ([Rule(types=nn.Conv2d, lr_factor=2)], REST, "a rule must mean a parameter"),
    "dims": ([Rule(dims=4, lr_factor=2)], REST, "There are parameters of 1, 2 dimensions"),
    "together": ([Rule("embed", dims=1, lr_factor=2)], REST, "but not all by one parameter"),
    "order": ([Rule(lr_factor=2), Rule("head", lr_factor=3)], REST, r"rules\[1\].*Move it up, or drop it"),
    "nothing": ([Rule("head")], REST, "a rule must give something"),
    "no default": ([MATRICES], None, "each parameter must have an optimizer. Got none for embed.weight"),
    "closure": ([Rule("head", optimizer=torch.optim.LBFGS)], REST, "decides by a closure"),
    "unfit": ([Rule("head", optimizer=partial(SGD, lr=-1.0))], REST, "take what the rules give it. Got Invalid learn"),
    "no optimizer": ([Rule("head", optimizer=list)], REST, "this must make an optimizer"),
    "no option": ([Rule("head", options={"beta": 1})], REST, "AdamW has no beta"),
    "no decay": ([Rule("head", weight_decay_factor=2)], torch.optim.Rprop, "Rprop has no weight_decay"),
    "no path": ([], {"class_path": "torch.optim.Adamm"}, "class_path must name an optimizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_wrong_rule_is_one_clear_error(case: str) -> None:
    """A rule that means nothing, gives nothing or cannot be followed is refused before the first step."""
    rules, default, match = BAD[case]
    with pytest.raises(ConfigError, match=match):
        ByRule(Net(), rules, default)


def test_wrong_values_come_all_at_once() -> None:
    """Each value of a wrong kind is named, in one error."""
    rules: Any = [Rule("", dims="2", types=3, lr_factor=-1, options={"params": 1}), 3, {"nmes": "head"}]  # type: ignore[arg-type]
    with pytest.raises(ConfigTypeError) as raised:
        ByRule(Net(), rules, 4)  # type: ignore[arg-type]
    text = str(raised.value)
    parts = ["rules[0].names", "rules[0].dims", "rules[0].types", "rules[0].lr_factor", "rules[0].options"]
    assert all(part in text for part in [*parts, "rules[1]: this must be a Rule", 'Did you mean "names"', "Got 4."])


@pytest.mark.parametrize("name", ["by_rule", "merge", "rule"])
def test_the_examples_are_true(name: str) -> None:
    """What the docstrings show is what happens."""
    failed, tried = doctest.testmod(import_module(f"lt_core.optim.{name}"))
    assert tried
    assert not failed
