"""Callbacks made from functions."""

import pytest

from lt_core.callbacks import LambdaCallback
from lt_core.hooks.table import overrides
from lt_interface.errors import ConfigError


def test_functions_become_hooks():
    """A function is called as the hook of its name, and other hooks stay as they were."""
    seen = []
    callback = LambdaCallback(on_train_start=lambda trainer, module: seen.append((trainer, module)), setup=None)
    callback.on_train_start("trainer", "module")
    assert seen == [("trainer", "module")]
    assert overrides(callback, "on_train_start")
    assert not overrides(callback, "setup")
    assert not overrides(callback, "on_train_end")


def test_a_misspelt_hook_suggests_the_nearest():
    """An unknown name is refused with the right spelling."""
    with pytest.raises(ConfigError, match=r'on_train_strat.*no hook of that name.*Did you mean "on_train_start"'):
        LambdaCallback(on_train_strat=print)


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "state_key", "monitoring"])
def test_state_is_no_hook(name):
    """What is not a moment of the run cannot be given."""
    with pytest.raises(ConfigError, match="no hook of that name"):
        LambdaCallback(**{name: print})


def test_what_can_not_be_called_is_refused():
    """A value that is no function is an error."""
    with pytest.raises(TypeError, match=r"must be a function or None\. Got 3"):
        LambdaCallback(on_train_end=3)
