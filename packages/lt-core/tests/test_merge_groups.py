"""Parameter groups of equal options, joined: the same training to the bit, and what cannot be joined."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, RMSprop

from lt_core.optim import merge_groups
from lt_interface.errors import ConfigError

KINDS: list[Any] = [
    partial(SGD, lr=0.1, momentum=0.9),
    partial(SGD, lr=0.1, fused=True),
    partial(AdamW, lr=0.1),
    partial(AdamW, lr=0.1, foreach=True),
    partial(AdamW, lr=0.1, fused=True, amsgrad=True),
    partial(RMSprop, lr=0.1),
    partial(Adagrad, lr=0.1),
]
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([0.1, 0.01, 0.0]),
        "weight_decay": st.sampled_from([0, 0.0, 0.1]),
        "maximize": st.booleans(),
    },
)
LAYOUTS = st.lists(st.tuples(st.integers(0, 3), OPTIONS), min_size=1, max_size=8).filter(
    lambda layout: any(size for size, _ in layout)
)


def parameters(layout: list[tuple[int, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return groups of fresh parameters, the same at each call."""
    torch.manual_seed(0)
    shapes = [(3,), (2, 2), ()]
    return [
        {**options, "params": [nn.Parameter(torch.randn(shapes[i % 3])) for i in range(size)]}
        for size, options in layout
    ]


def trained(optimizer: torch.optim.Optimizer, groups: list[dict[str, Any]]) -> list[Tensor]:
    """Return the parameters, in their first order, after three steps."""
    params = [p for group in groups for p in group["params"]]
    for step in range(3):
        for number, p in enumerate(params):
            p.grad = torch.full_like(p, 0.1 * (number + step + 1)) * p.detach()
        optimizer.step()
    return [p.detach() for p in params]


@settings(max_examples=25)
@given(LAYOUTS, st.sampled_from(KINDS), st.booleans())
def test_training_stays_the_same_to_the_bit(layout: Any, kind: Any, in_place: bool) -> None:
    """Whatever the groups and the optimizer, joined groups train as those that were given."""
    plain, joined = parameters(layout), parameters(layout)
    optimizer = merge_groups(kind(joined)) if in_place else kind(merge_groups(joined))
    expected, found = trained(kind(plain), plain), trained(optimizer, joined)
    assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
    kept = [str({k: v for k, v in group.items() if k != "params"}) for group in optimizer.param_groups]
    assert len(set(kept)) == len(kept) or not in_place  # an option left out is the default only to an optimizer
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(expected)


def test_order_and_names_are_kept() -> None:
    """A joined group stands where its first stood; parameters keep their order and their names."""
    a, b, c, d = (nn.Parameter(torch.zeros(1)) for _ in range(4))
    given = [
        {"params": [("a", a)], "lr": 0.1},
        {"params": (p for p in [("b", b)]), "lr": 0.2},
        {"params": [("c", c), ("d", d)], "lr": 0.1},
    ]
    optimizer = merge_groups(SGD(merge_groups(given)))
    assert [group["param_names"] for group in optimizer.param_groups] == [["a", "c", "d"], ["b"]]
    assert optimizer.param_groups[0]["params"] == [a, c, d]
    assert given[0] == {"params": [("a", a)], "lr": 0.1}  # as it was
    each = SGD([{"params": [pair]} for pair in (("a", a), ("b", b))], lr=0.1)
    assert merge_groups(each) is each
    assert [group["param_names"] for group in each.param_groups] == [["a", "b"]]


def test_parameters_are_one_group() -> None:
    """Parameters without groups, or a generator of them, are one group; a tensor alone in a group is one, too."""
    net = nn.Linear(2, 2)
    assert [len(group["params"]) for group in merge_groups(net.parameters())] == [2]
    assert [len(group["params"]) for group in merge_groups(net.named_parameters())] == [2]
    assert [len(group["params"]) for group in merge_groups({"params": p} for p in net.parameters())] == [2]
    assert merge_groups([]) == []


def test_what_differs_stays_apart() -> None:
    """Values of another type, names, and options that only one group has keep groups apart; equal tensors do not."""
    rates = [torch.tensor(0.1), torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), 0.1, 1, 1.0, True]
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    assert [len(group["params"]) for group in merge_groups(groups)] == [2, 1, 1, 1, 1, 1]
    own: list[dict[str, Any]] = [{"betas": (0.9, 0.99)}, {"betas": (0.9, 0.99)}, {"betas": [0.9, 0.99]}, {}]
    own += [{"name": "a"}, {"name": "b"}, {"eps": float("nan")}, {"eps": float("nan")}]
    groups = [{"params": [nn.Parameter(torch.zeros(1))], **each} for each in own]
    assert [len(group["params"]) for group in merge_groups(groups)] == [2, 1, 1, 1, 1, 2]


def test_states_stay_with_their_parameters() -> None:
    """Groups joined between two steps change nothing; the state goes to another optimizer with joined groups."""
    layout: Any = [(1, {"lr": 0.1}), (2, {}), (1, {"lr": 0.1})]
    plain, joined = parameters(layout), parameters(layout)
    one, two = AdamW(plain, lr=0.2), AdamW(joined, lr=0.2)
    trained(one, plain)
    trained(two, joined)
    merge_groups(two)
    third = AdamW(merge_groups(parameters(layout)), lr=0.2)
    third.load_state_dict(two.state_dict())
    assert [len(group["params"]) for group in third.param_groups] == [2, 2]
    expected, found = trained(one, plain), trained(two, joined)
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))


def test_what_cannot_be_joined_is_one_clear_error() -> None:
    """A parameter in two groups, a set, and an optimizer that a scheduler knows are refused."""
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="each parameter must be in one group"):
        merge_groups([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ConfigError, match="parameters need an order"):
        merge_groups([{"params": {p}}])
    optimizer = SGD([p], lr=0.1)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ConfigError, match="before it gets a learning-rate scheduler"):
        merge_groups(optimizer)
