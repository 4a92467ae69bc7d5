"""The registry finds plugins by name in the metadata of installed packages."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lt_interface import InterfaceVersionError, PluginError, Registry, UnknownPluginError, __version__
from lt_interface.errors import ConfigError, nearest
from lt_interface.registry import allows, fits, loggers, precisions, rescan, strategies

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Iterator[Install]:
    """Return a function that lays a package with real metadata on sys.path."""
    path = sys.path[:]
    sys.path.insert(0, str(tmp_path))
    before = set(sys.modules)

    def lay(
        name: str, points: str, code: str = "", requires: tuple[str, ...] = (), extras: tuple[str, ...] = ()
    ) -> Path:
        module = name.replace("-", "_")
        (tmp_path / f"{module}.py").write_text(code or "class Plugin:\n    pass\n")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0"]
        lines += [f"Requires-Dist: {r}" for r in requires] + [f"Provides-Extra: {e}" for e in extras]
        (info / "METADATA").write_text("\n".join(lines) + "\n")
        (info / "entry_points.txt").write_text(points)
        rescan()
        return info

    yield lay
    sys.path[:] = path
    for module in set(sys.modules) - before:
        del sys.modules[module]
    rescan()


def test_finds_a_plugin_of_any_package(install: Install) -> None:
    """A class named by an installed package's entry point is imported under its name."""
    install("alien-kit", "[lt.strategies]\nalien = alien_kit:Plugin\n")
    plugin = strategies.get("alien")
    assert plugin.__module__ == "alien_kit"
    assert "alien" in strategies.names()
    assert strategies.problem("alien", "here") is None


def test_imports_only_the_named_plugin(install: Install) -> None:
    """Listing names and getting one plugin imports no other plugin."""
    install("first-kit", "[lt.strategies]\nfirst = first_kit:Plugin\n")
    install("broken-kit", "[lt.strategies]\nbroken = broken_kit:Plugin\n", code="raise RuntimeError('imported')\n")
    assert {"first", "broken"} <= set(strategies.names())
    strategies.problem("broken", "here")
    assert "first_kit" not in sys.modules
    strategies.get("first")
    assert "first_kit" in sys.modules
    assert "broken_kit" not in sys.modules


def test_scans_metadata_once(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of look-ups in all groups opens the installed packages' metadata once; rescan opens it again."""
    install("first-kit", "[lt.strategies]\nfirst = first_kit:Plugin\n")
    scans: list[int] = []
    read = importlib.metadata.entry_points

    def counted() -> importlib.metadata.EntryPoints:
        scans.append(1)
        return read()

    monkeypatch.setattr(importlib.metadata, "entry_points", counted)
    for _ in range(3):
        strategies.names()
        strategies.get("first")
        loggers.names()
        precisions.problem("none", "here")
    assert len(scans) == 1
    rescan()
    strategies.names()
    assert len(scans) == 2


def test_sees_a_later_install_after_rescan(install: Install) -> None:
    """A package that appears while the process runs is found once rescan was called."""
    with pytest.raises(UnknownPluginError):
        strategies.get("late")
    install("late-kit", "[lt.strategies]\nlate = late_kit:Plugin\n")
    assert strategies.get("late").__name__ == "Plugin"


def test_refuses_two_owners_of_a_name(install: Install) -> None:
    """A name that two packages claim is an error that names both and the command that removes one."""
    install("one-kit", "[lt.strategies]\nsame = one_kit:Plugin\n")
    install("two-kit", "[lt.strategies]\nsame = two_kit:Plugin\n")
    with pytest.raises(PluginError) as caught:
        strategies.get("same", 'Trainer(strategy="same")')
    message = str(caught.value)
    assert not isinstance(caught.value, UnknownPluginError)
    assert message.startswith('Trainer(strategy="same"): only one package may provide the strategy')
    assert "one-kit (one_kit:Plugin)" in message
    assert "two-kit (two_kit:Plugin)" in message
    assert "pip uninstall " in message
    assert not {"one_kit", "two_kit"} & set(sys.modules)


def test_one_name_in_two_groups_is_no_conflict(install: Install) -> None:
    """Groups have names of their own."""
    install("one-kit", "[lt.strategies]\nsame = one_kit:Plugin\n[lt.launchers]\nsame = one_kit:Plugin\n")
    assert strategies.problem("same", "here") is None


def test_same_package_twice_is_no_conflict(install: Install, tmp_path: Path) -> None:
    """The same entry point seen in two metadata folders, as with an editable install, counts once."""
    install("one-kit", "[lt.strategies]\nsame = one_kit:Plugin\n")
    install("one-kit-editable", "[lt.strategies]\nsame = one_kit:Plugin\n")
    assert strategies.get("same").__module__ == "one_kit"


@pytest.mark.parametrize("requirement", ["lt-interface>=0.0.1,<0.1", "lt_interface (>=7.3,<7.4)", "LT-Interface~=9.1"])
def test_refuses_a_misfit_by_requirement(install: Install, requirement: str) -> None:
    """A package that asks for another interface is refused, unimported, naming both versions and the command."""
    install("old-kit", "[lt.strategies]\nold = old_kit:Plugin\n", requires=("torch", requirement))
    with pytest.raises(InterfaceVersionError) as caught:
        strategies.get("old", 'Trainer(strategy="old")')
    message = str(caught.value)
    wanted = requirement.lower().replace("lt_interface (", "").removeprefix("lt-interface").rstrip(")")
    assert message == (
        f'Trainer(strategy="old"): old-kit was written for lt-interface {wanted}. Got lt-interface {__version__}. '
        "Run: pip install --upgrade old-kit lt-interface"
    )
    assert str(strategies.problem("old", 'Trainer(strategy="old")')) == message
    assert "old_kit" not in sys.modules


def test_refuses_a_misfit_by_statement(install: Install) -> None:
    """A class that states another interface_version is refused, naming both versions."""
    install(
        "new-kit", "[lt.strategies]\nnew = new_kit:Plugin\n", code="class Plugin:\n    interface_version = '99.2'\n"
    )
    with pytest.raises(InterfaceVersionError, match=rf"99\.2.*{__version__}.*pip install --upgrade new-kit"):
        strategies.get("new")


@pytest.mark.parametrize(
    "requirement", ["lt-interface", "lt-interface>=0.1,<99", 'lt-interface[testing]>=0.1; extra == "x"']
)
def test_accepts_a_fitting_requirement(install: Install, requirement: str) -> None:
    """A range that contains the installed version, or none at all, is accepted."""
    install("fit-kit", "[lt.strategies]\nfit = fit_kit:Plugin\n", requires=(requirement, "lt-interface-extras>=7"))
    assert strategies.get("fit").__name__ == "Plugin"


def test_unknown_name_teaches(install: Install) -> None:
    """An unknown name is answered with what is installed and the nearest name, whatever the case."""
    install("alien-kit", "[lt.strategies]\nalien = alien_kit:Plugin\n")
    with pytest.raises(UnknownPluginError) as caught:
        strategies.get("Aliens", 'Trainer(strategy="Aliens")')
    message = str(caught.value)
    assert message.startswith('Trainer(strategy="Aliens"): no strategy of that name. Installed: ')
    assert "alien" in message.partition("Installed: ")[2].partition(".")[0].split(", ")
    assert message.endswith('Did you mean "alien"?')
    assert isinstance(caught.value, (KeyError, ValueError, ConfigError))


def test_empty_group_says_none() -> None:
    """A group without any plugin is listed as none."""
    registry: Registry[object] = Registry("lt.nothing", "thing")
    with pytest.raises(UnknownPluginError, match=r"no thing of that name\. Installed: none\."):
        registry.get("x")


@pytest.fixture
def bare() -> Iterator[None]:
    """Make the process see no installed package at all."""
    path = sys.path[:]
    sys.path[:] = []
    rescan()
    yield
    sys.path[:] = path
    rescan()


def test_sibling_is_answered_with_its_command(bare: None) -> None:
    """A plugin of a sibling package that is not installed is answered with the exact pip command."""
    assert str(precisions.problem("bf16-mixed", 'Trainer(precision="bf16-mixed")')) == (
        'Trainer(precision="bf16-mixed"): this precision comes with another package. Run: pip install lt-accel'
    )
    assert str(loggers.problem("tensorboard", "here")).endswith("Run: pip install 'lt-loggers[tensorboard]'")


def test_typo_of_a_sibling_is_answered_with_both(bare: None) -> None:
    """A name near one of a missing sibling gets the right spelling and the pip command."""
    assert str(loggers.problem("tensorbord", "here")).endswith(
        "Installed: none. Did you mean \"tensorboard\"? Run: pip install 'lt-loggers[tensorboard]'"
    )


def test_outdated_sibling_is_to_be_upgraded(bare: None, install: Install) -> None:
    """Where the sibling is installed but too old to have the plugin, the command upgrades it."""
    install("lt-accel", "")
    assert str(precisions.problem("bf16-mixed", "here")).endswith("Run: pip install --upgrade lt-accel")


def test_broken_import_names_the_cause(install: Install) -> None:
    """A plugin that fails to import is reported with its cause and what to do."""
    install("bad-kit", "[lt.strategies]\nbad = bad_kit:Plugin\n", code="raise RuntimeError('out of luck')\n")
    with pytest.raises(
        PluginError, match=r"bad_kit:Plugin must be importable. Got RuntimeError: out of luck."
    ) as caught:
        strategies.get("bad")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "pip install --force-reinstall bad-kit" in str(caught.value)


def test_missing_extra_is_answered_with_its_command(install: Install) -> None:
    """A plugin whose own extra is missing is answered with the command that installs the extra."""
    install("web-kit", "[lt.loggers]\nweb = web_kit:Plugin\n", code="import surely_missing\n", extras=("web",))
    with pytest.raises(PluginError, match=r"No module named 'surely_missing'. Run: pip install 'web-kit\[web\]'"):
        loggers.get("web")


def test_missing_module_is_named(install: Install) -> None:
    """A plugin that needs another module is answered with that module's name."""
    install("web-kit", "[lt.loggers]\nweb = web_kit:Plugin\n", code="import surely_missing.part\n")
    with pytest.raises(PluginError, match=r"Install the module surely_missing, which web-kit needs."):
        loggers.get("web")


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ("0.1", "0.1.5", True),
        ("0.1", "0.2.0", False),
        ("0.2", "0.1.0", False),
        ("0.9", "1.0.0", False),
        ("1.2", "1.4.0", True),
        ("1.4", "1.2.0", False),
        ("2.0", "1.9.0", False),
        ("1", "1.2.0", True),
        ("0.1.0rc1", "0.1.0", True),
        ("nonsense", "0.1.0", False),
    ],
)
def test_versions_that_fit(theirs: str, ours: str, expected: bool) -> None:
    """Below 1.0 each minor is its own; from 1.0 on, older minors of the same major fit."""
    assert fits(theirs, ours) is expected


@pytest.mark.parametrize(
    ("requirement", "ours", "expected"),
    [
        (">=0.1,<0.2", "0.1.9", True),
        (">=0.1,<0.2", "0.2.0", False),
        ("<0.2,>=0.1", "0.0.9", False),
        ("==0.1.*", "0.1.7", True),
        ("==0.1.*", "0.2.0", False),
        ("!=0.1.3", "0.1.3", False),
        ("~=0.1.2", "0.1.9", True),
        ("~=0.1.2", "0.2.0", False),
        ("~=1.2", "1.9.0", True),
        ("~=1.2", "2.0.0", False),
        (">1.0,<=1.2", "1.2.0", True),
        ("===1.0.0", "1.0.0", True),
        ("whatever", "1.0.0", True),
    ],
)
def test_ranges_that_allow(requirement: str, ours: str, expected: bool) -> None:
    """A version range is understood as pip understands it."""
    assert allows(requirement, ours) is expected


def test_import_brings_no_torch() -> None:
    """Importing the package and reading a registry loads neither torch nor numpy nor pytest."""
    code = (
        "import sys; from lt_interface import *; from lt_interface.registry import loggers; loggers.names(); "
        "print(sorted({'torch', 'numpy', 'pytest', 'difflib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    """Each name in __all__ can be imported, and dir lists it; another name is an AttributeError."""
    import lt_interface

    for name in lt_interface.__all__:
        assert getattr(lt_interface, name) is not None
        assert name in dir(lt_interface)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = lt_interface.nonsense


def test_nearest_ignores_case() -> None:
    """A name in other capitals is found; one that looks like nothing known is not."""
    assert nearest("CSV", ["csv", "tensorboard"]) == 'Did you mean "csv"?'
    assert nearest("zzz", ["csv"]) == ""
