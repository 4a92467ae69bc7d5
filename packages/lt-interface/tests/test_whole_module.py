"""Give back what a strategy that leaves the module whole has put on a device."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")

from lt_interface import WholeModuleStrategy, registry  # noqa: E402


class Remote:
    """Stand-in of a tensor on a card that is not here: its data, once it is moved."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    def to(self, device: str) -> Any:
        assert device == "cpu"
        return self.tensor


class Pair(NamedTuple):
    first: Any
    second: Any


def remote(value: Any) -> Any:
    """Return a value with each tensor behind a stand-in, lists and dicts the same objects."""
    if isinstance(value, torch.Tensor):
        return Remote(value)
    if isinstance(value, dict):
        value.update({key: remote(entry) for key, entry in value.items()})
    if isinstance(value, list):
        value[:] = map(remote, value)
    if isinstance(value, tuple):
        return Pair(*map(remote, value)) if isinstance(value, Pair) else tuple(map(remote, value))
    return value


def on_a_card(name: str) -> Any:
    """Return a strategy of that name as it is after a setup on a card."""
    try:
        made: Any = registry.strategies.get(name)()
    except registry.UnknownPluginError:
        pytest.skip(f"{name} is not installed")
    made.device = torch.device("cuda")
    return made


@pytest.mark.parametrize("name", ["single_device", "ddp"])
def test_lbfgs_goes_on_after_the_release(name: str) -> None:
    """The lists in the state of LBFGS come back too: it trains on as if nothing had been moved."""

    def train(moves: bool) -> list[float]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 1)
        optimizer = torch.optim.LBFGS(net.parameters(), max_iter=3)
        data = torch.randn(8, 3)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = (net(data).sin() - data.sum(1, keepdim=True)).square().mean()
            loss.backward()
            return loss

        for step in range(4):
            optimizer.step(closure)
            if moves and step == 1:
                for state in optimizer.state.values():
                    assert any(isinstance(value, list) and value for value in state.values())
                    remote(state)
                on_a_card(name).release(net, [optimizer])
        return net.weight.detach().flatten().tolist()

    assert train(moves=True) == train(moves=False)


def test_states_of_any_depth_are_moved() -> None:
    """Tensors in dicts, lists, tuples and named tuples are moved; what else there is stays, shared objects shared."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    blocks = [torch.ones(1), None, {"deep": (torch.ones(2), 3)}]
    optimizer.state[parameter] = {"blocks": blocks, "pair": Pair(torch.ones(3), "text"), "count": 4, "step": None}
    remote(optimizer.state[parameter])
    strategy = WholeModuleStrategy()
    strategy.device = torch.device("cuda")
    strategy.release(torch.nn.Module(), [optimizer])
    state = optimizer.state[parameter]
    assert state["blocks"] is blocks
    assert (blocks[1], blocks[2]["deep"][1], state["count"], state["step"]) == (None, 3, 4, None)
    assert type(state["pair"]) is Pair
    moved = [blocks[0], blocks[2]["deep"][0], state["pair"].first]
    assert [tuple(tensor.shape) for tensor in moved] == [(1,), (2,), (3,)]
