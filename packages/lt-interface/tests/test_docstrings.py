"""Every public class and function of the interface is described: arguments, result, errors, example."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import lt_interface

SOURCES = Path(lt_interface.__file__).parent
MODULES = sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections(node: Function | ast.ClassDef) -> dict[str, str]:
    """Return a docstring's text by the title of its section; the text before the first has an empty title."""
    parts = re.split(r"^([A-Z][a-z]+):$", ast.get_docstring(node) or "", flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def decorators(node: Function) -> str:
    return " ".join(ast.unparse(d) for d in node.decorator_list)


def parameters(node: Function) -> list[str]:
    """Return the names of a function's parameters, with their stars, without self and cls."""
    a = node.args
    names = [p.arg for p in [*a.posonlyargs, *a.args] if p.arg not in ("self", "cls")]
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    return names + [p.arg for p in a.kwonlyargs] + ([f"**{a.kwarg.arg}"] if a.kwarg else [])


def raised(node: Function) -> Iterator[str]:
    """Yield the name of each exception that a function raises itself; a re-raise has none."""
    nested = [child for child in ast.walk(node) if isinstance(child, Function) and child is not node]
    inner = [n for child in nested for n in ast.walk(child)]
    for child in ast.walk(node):
        if isinstance(child, ast.Raise) and child.exc is not None and child not in inner:
            kind = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            for name in [kind.body, kind.orelse] if isinstance(kind, ast.IfExp) else [kind]:
                yield ast.unparse(name) if ast.unparse(name)[0].isupper() else ""


def lacks(node: Function, owner: ast.ClassDef | None) -> Iterator[str]:
    """Yield what the description of a public function lacks."""
    found = sections(node)
    described = re.findall(r"^    ([*\w]+)(?: \(.*\))?:", found.get("Args", ""), re.MULTILINE)
    if described != parameters(node):
        yield f"Args: {parameters(node)}, described are {described}"
    gives = node.returns is not None and ast.unparse(node.returns) not in ("None", "NoReturn")
    if gives and not {"Returns", "Yields"} & set(found) and not found[""].startswith("Return "):
        yield "Returns"
    for name in raised(node):
        if f"{name}:" not in found.get("Raises", ""):
            yield f"Raises: {name}"
    if "Example" not in found and not (owner and shown_by(owner, node)):
        yield "Example"


def shown_by(owner: ast.ClassDef, node: Function) -> bool:
    """Return whether a class's example shows a method: it defines or calls it, or there is nothing to give it."""
    is_suite = owner.name.endswith(("Conformance", "Abilities"))  # pytest calls it as a whole
    shown = sections(owner).get("Example", "")
    return is_suite or not parameters(node) or re.search(rf"(def |\.){node.name}\(", shown) is not None


def described_elsewhere(owner: ast.ClassDef, node: Function) -> bool:
    """Return whether a method is a test, a fixture, or a stand-in's, which the protocol that it fills describes."""
    return (
        owner.name.startswith(("Reference", "Plain")) or node.name.startswith("test_") or "fixture" in decorators(node)
    )


def findings(tree: ast.Module) -> Iterator[str]:
    """Yield each public class or function of a module with what its description lacks."""
    public = [n for n in tree.body if isinstance(n, Function | ast.ClassDef) and not n.name.startswith("_")]
    for node in public:
        if isinstance(node, Function):
            yield from (f"{node.name}: {what}" for what in lacks(node, None))
            continue
        if "Example" not in sections(node):
            yield f"{node.name}: Example"
        for method in node.body:
            if not isinstance(method, Function):
                continue
            if method.name == "__init__":
                described = re.findall(r"^    ([*\w]+):", sections(node).get("Args", ""), re.MULTILINE)
                if described != [name.lstrip("*") for name in parameters(method)]:
                    yield f"{node.name}: Args: {parameters(method)}, described are {described}"
            elif not method.name.startswith("_") and not described_elsewhere(node, method):
                yield from (f"{node.name}.{method.name}: {what}" for what in lacks(method, node))


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_described(module: str) -> None:
    """Each has Args for its parameters, Returns, Raises for what it raises, and an example in it or in its class."""
    tree = ast.parse((SOURCES / module).read_text(encoding="utf-8"))
    assert not list(findings(tree))


def test_what_is_missing_is_found() -> None:
    """A function without any description is reported with all that it lacks."""
    source = 'def f(a, *b, **c) -> int:\n    """Do it."""\n    raise ValueError(a)\n'
    assert [line.partition(":")[2].split(":")[0].strip() for line in findings(ast.parse(source))] == [
        "Args",
        "Returns",
        "Raises",
        "Example",
    ]
