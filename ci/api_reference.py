"""Write the pages of the API reference from the public names that `api_diff` finds, and check that nothing lacks there.

Sphinx writes the pages each time it builds (docs/conf.py), so that a new public name is in the reference by itself.
`python ci/api_reference.py docs/_build/html` fails where a public name or member is not among what was built, has no
docstring with a summary, or takes a parameter that is described nowhere.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import api_diff

# What most readers look for comes first.
ORDER = ["lt-core", "lt-loggers", "lt-accel", "lt-interface"]
# A class of more members has a page of its own.
SHORT = 15
PLAIN = (str, int, float, bool, type(None))
INTRODUCTION = """\
API reference
=============

Every public name of the four packages, by the module that programs import it from. What several modules offer is
described at one of them, and linked at the others.

"""


@dataclass(frozen=True)
class Name:
    """Public name of a module, and the place at which it is described.

    Args:
        module: The module that offers it.
        word: The name itself.
        value: What it stands for.
        home: The dotted name under which the reference describes it.
    """

    module: str
    word: str
    value: Any
    home: str

    @property
    def here(self) -> bool:
        """Return whether this is the place at which it is described."""
        return self.home == f"{self.module}.{self.word}"


@cache
def names() -> tuple[Name, ...]:
    """Return every public name; the interface's and the siblings' own come before the core, which lends them."""
    homes: dict[Any, str] = {}
    found = []
    for package in sorted(api_diff.PACKAGES, key="lt-core".__eq__):
        for path in api_diff.modules(package):
            module = importlib.import_module(path)
            for word in [*api_diff.public(module), *api_diff.lent(module)]:
                value = getattr(module, word)
                here = f"{path}.{word}"
                # A class or function is one thing under any name; of values only those of one name are.
                thing = id(value) if inspect.isclass(value) or inspect.isroutine(value) else (id(value), word)
                home = here if isinstance(value, PLAIN) else homes.setdefault(thing, here)
                found.append(Name(path, word, value, home))
    return tuple(found)


@cache
def classes() -> dict[type, str]:
    """Return the described classes with their dotted names."""
    return {name.value: name.home for name in names() if inspect.isclass(name.value)}


def bases(owner: type) -> list[type]:
    """Return the bases of a class that have a place of their own in the reference."""
    return [base for base in owner.__mro__[1:] if base in classes()]


def members(owner: type) -> dict[str, Any]:
    """Return the members that are described at a class: all but those of its described bases, constants last."""
    inherited = set(bases(owner))
    found = {n: v for n, (base, v) in api_diff.defined(owner).items() if base not in inherited}
    return {word: found[word] for word in sorted(found, key=str.isupper)}


# ------------------------------------------------------------ what is said of a name


def sections(text: str) -> dict[str, str]:
    """Return a docstring's text by the title of its section; the text before the first has an empty title."""
    parts = re.split(r"^([A-Z]\w+):\n", text, flags=re.MULTILINE)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str, *titles: str) -> dict[str, str]:
    """Return what a docstring's sections of some titles say of each name."""
    found = {}
    for title in titles:
        body = textwrap.dedent(sections(text).get(title, ""))
        for head, said in re.findall(r"^(\S[^:\n]*):\s(.*(?:\n(?:[ \t].*|)$)*)", body, flags=re.MULTILINE):
            for word in re.sub(r"\(.*?\)", "", head).split(","):
                found[word.strip().lstrip("*")] = said
    return found


@cache
def comments(owner: Any) -> dict[str, str]:
    """Return the ``#:`` comment in front of each name that a module or class assigns."""
    try:
        lines = textwrap.dedent(inspect.getsource(owner)).split("\n")
    except (OSError, TypeError):
        return {}
    tree: Any = ast.parse("\n".join(lines))
    body = tree.body if inspect.ismodule(owner) else tree.body[0].body
    found = {}
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        first = last = node.lineno - 1
        while first and lines[first - 1].lstrip().startswith("#:"):
            first -= 1
        said = " ".join(line.strip()[2:].strip() for line in lines[first:last])
        found.update({t.id: said for t in targets if isinstance(t, ast.Name) and said})
    return found


def function_of(owner: type, word: str) -> Any:
    """Return the function behind a method of any kind; None if the member is none."""
    value = inspect.getattr_static(owner, word)
    bound = value if inspect.isfunction(value) else getattr(owner, word, None)
    function = getattr(bound, "__func__", bound)
    return function if inspect.isfunction(function) else None


def text_of(name: Name) -> str:
    """Return what is said of a name: its docstring, or the comment in front of its assignment."""
    value = name.value
    if inspect.isclass(value) or inspect.isroutine(value):
        return inspect.getdoc(value) or ""
    for path, module in list(sys.modules.items()):
        if path.startswith(name.module.partition(".")[0]) and name.word in comments(module):
            return comments(module)[name.word]
    ours = type(value).__module__.startswith("lt_")
    return (inspect.getdoc(type(value)) or "") if ours else ""


def text_of_member(owner: type, word: str) -> str:
    """Return what is said of a member: its docstring, its comment, or its entry in the docstring of its class."""
    for base in [*owner.__mro__[:-1], *protocols(word)]:
        doc = inspect.cleandoc(vars(base).get("__doc__") or "")
        member = vars(base).get(word)
        own = function_of(base, word) if word in vars(base) else None
        # A property and what decorators make may have a docstring, too; a plain value only has its type's.
        own = own or (member if isinstance(member, property) or "__doc__" in getattr(member, "__dict__", {}) else None)
        said = (inspect.getdoc(own) if own else "") or comments(base).get(word)
        said = said or entries(doc, "Attributes", "Args").get(word) or (doc if mentions(doc, word) else "")
        if said:
            return said
    return ""


def mentions(text: str, word: str) -> bool:
    """Return whether a docstring's prose holds a name as code."""
    return any(word in re.findall(r"\w+", code) for code in re.findall(r"``([^`]+)``", text))


@cache
def protocols(word: str) -> list[type]:
    """Return the protocols of the interface that have a member of a name: what they say holds for all who fill them."""
    found = [c for c in classes() if Protocol in c.__bases__]
    return [c for c in found if word in vars(c) or word in vars(c).get("__annotations__", {})]


# ------------------------------------------------------------ pages


def heading(text: str, line: str = "=") -> str:
    """Return a heading of reStructuredText."""
    return f"{text}\n{line * len(text)}\n\n"


def prose(text: str, what: Any) -> str:
    """Return a docstring in Google's style as reStructuredText."""
    from sphinx.ext.napoleon import Config
    from sphinx.ext.napoleon.docstring import GoogleDocstring

    settings: Any = Config(napoleon_use_rtype=False)
    return str(GoogleDocstring(text, settings, what=what))


def signature(value: Any, bound: bool = False) -> str:
    """Return a callable's parameters with their types, as they are written."""
    from sphinx.util.inspect import stringify_signature

    try:
        given = inspect.signature(value)
    except (TypeError, ValueError):
        return "(...)"
    if bound:
        given = given.replace(parameters=list(given.parameters.values())[1:])
    text: str = stringify_signature(given, unqualified_typehints=True)
    return text


def directive(kind: str, head: str, body: str, *options: str) -> str:
    """Return a directive of Sphinx's Python domain."""
    lines = [f".. py:{kind}:: {head}", *(f"   {option}" for option in options), ""]
    return "\n".join(lines) + "\n" + textwrap.indent(body.strip("\n"), "   ") + "\n\n"


def member_entry(owner: type, word: str, value: Any) -> str:
    """Return the entry of one member of a class."""
    said = text_of_member(owner, word)
    function = function_of(owner, word)
    if function is not None:
        static, plain = isinstance(value, staticmethod), inspect.isfunction(value)
        options = [":staticmethod:"] if static else [] if plain else [":classmethod:"]
        return directive("method", word + signature(function, not static), prose(said, "method"), *options)
    if isinstance(value, property):
        return directive("property", word, prose(said, "property"))
    shown = repr(value) if isinstance(value, PLAIN) else ""
    if said == inspect.getdoc(owner):  # it stands in what is said of the class
        said = ""
    return directive(
        "attribute", word, prose(inspect.cleandoc(said), "attribute"), *([f":value: {shown}"] if shown else [])
    )


def class_entry(name: Name, overview: str = "") -> str:
    """Return the entry of a class: its docstring, an overview, then its members."""
    owner = name.value
    # Attributes have entries of their own.
    said = re.sub(r"^Attributes:\n(?:[ \t].*\n|\n)*", "", text_of(name) + "\n", flags=re.MULTILINE)
    body = [prose(said, "class")]
    making = vars(owner).get("__init__")
    if making is not None and making.__doc__:
        body.append(prose(inspect.getdoc(making) or "", "method"))
    parents = ", ".join(f":py:class:`{classes()[base]}`" for base in bases(owner))
    if parents:
        body.append(f"It has the members of {parents}, too.\n")
    body.append(overview)
    body += [member_entry(owner, word, value) for word, value in members(owner).items()]
    for word, told in entries(text_of(name), "Attributes").items():
        if word not in api_diff.defined(owner):  # each instance has it
            body.append(directive("attribute", word, prose(inspect.cleandoc(told), "attribute")))
    bare = Protocol in owner.__bases__ or issubclass(owner, BaseException)
    return directive("class", name.word + ("" if bare else signature(owner)), "\n\n".join(body))


def entry(name: Name) -> str:
    """Return the entry of a name."""
    if inspect.isclass(name.value):
        return class_entry(name)
    if inspect.isroutine(name.value):
        return directive("function", name.word + signature(name.value), prose(text_of(name), "function"))
    shown = [f":value: {name.value!r}"] if isinstance(name.value, PLAIN) and name.word != "__version__" else []
    return directive("data", name.word, prose(text_of(name), "data"), *shown)


def first_of(text: str) -> str:
    """Return the first paragraph of what is said, on one line."""
    return " ".join(re.split(r"\n\s*\n", text.strip(), maxsplit=1)[0].split())


def summary(name: Name) -> str:
    """Return the first paragraph that is said of a name."""
    return first_of(text_of(name))


def table(rows: list[tuple[str, str, str, str]]) -> str:
    """Return a table of links with what is said of each: role, words, dotted name and summary."""
    lines = [f"   * - :py:{role}:`{word} <{home}>`\n     - {said}\n" for role, word, home, said in rows]
    return "\n\n.. list-table::\n   :widths: 35 65\n   :class: names\n\n" + "".join(lines) + "\n"


def table_of_members(name: Name) -> str:
    """Return the table of a class's members."""
    rows = []
    for word in members(name.value):
        said = text_of_member(name.value, word)
        role = "attr" if function_of(name.value, word) is None else "meth"
        said = "" if said == text_of(name) else first_of(said)
        rows.append((role, word, f"{name.home}.{word}", said))
    return table(rows)


def long(name: Name) -> bool:
    """Return whether a name has a page of its own."""
    return inspect.isclass(name.value) and len(members(name.value)) > SHORT


def parent(path: str) -> str:
    """Return the package that a module lies in."""
    return path.rpartition(".")[0]


def hidden(pages: list[str]) -> str:
    """Return a table of contents that only the navigation shows."""
    return "\n.. toctree::\n   :hidden:\n\n" + "".join(f"   {page}\n" for page in pages) + "\n" if pages else ""


def page_of(path: str, below: list[str]) -> tuple[str, list[Name]]:
    """Return a module's page, and the classes that have pages of their own; ``below`` are the modules in it."""
    offered = [name for name in names() if name.module == path]
    own = [name for name in offered if name.here]
    apart = [name for name in own if long(name)]
    rows = []
    for name in offered:
        role = "class" if inspect.isclass(name.value) else "func" if inspect.isroutine(name.value) else "data"
        rows.append((role, name.word, name.home, summary(name)))
    said = inspect.getdoc(sys.modules[path]) or ""
    text = heading(path) + directive("module", path, "") + prose(said, "module") + table(rows)
    text += hidden([*(name.home for name in apart), *below])
    text += "".join("\n" + heading(name.word, "-") + entry(name) for name in own if name not in apart)
    return text, apart


def pages() -> dict[str, str]:
    """Return the text of each page by its file's name."""
    found = {}
    contents = INTRODUCTION
    for package in ORDER:
        top, *modules = api_diff.modules(package)
        shown = [top, *(path for path in modules if parent(path) not in modules)]
        firsts = {path: first_of(inspect.getdoc(sys.modules[path]) or "") for path in shown}
        contents += heading(package, "-") + table([("mod", path, path, said) for path, said in firsts.items()])
        contents += hidden(shown)
        for path in [top, *modules]:
            below = [module for module in modules if parent(module) == path != top]
            found[f"{path}.rst"], apart = page_of(path, below)
            for name in apart:
                head = heading(name.word) + f".. py:currentmodule:: {path}\n\n"
                found[f"{name.home}.rst"] = head + class_entry(name, table_of_members(name))
    return {"index.rst": contents, **found}


def write(folder: Path) -> None:
    """Write the pages into a folder; what has not changed is left alone, so that Sphinx does not read it again."""
    folder.mkdir(exist_ok=True)
    wanted = pages()
    for path in folder.iterdir():
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


# ------------------------------------------------------------ the gate


def built(inventory: Path) -> set[str]:
    """Return the dotted names of all that Sphinx has described, from its inventory."""
    packed = inventory.read_bytes().split(b"\n", 4)[4]
    lines = zlib.decompress(packed).decode().splitlines()
    return {line.split(" ", 1)[0] for line in lines if line.split(" ", 2)[1].startswith("py:")}


def parameters(value: Any) -> set[str]:
    """Return the names of the parameters to describe: not those that only pass on what they get."""
    try:
        given = inspect.signature(value).parameters.values()
    except (TypeError, ValueError):
        return set()
    passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in given if p.kind not in passed_on and p.name not in ("self", "cls") and p.name[0] != "_"}


def undescribed(texts: list[str], wanted: set[str]) -> list[str]:
    """Return the parameters that no text describes in a section, or names as ``name`` in its prose."""
    for text in texts:
        wanted = {word for word in wanted - set(entries(text, "Args", "Attributes")) if not mentions(text, word)}
    return sorted(wanted)


def lacks(name: Name) -> Iterator[str]:
    """Yield what lacks at a name: a summary, or the description of a parameter."""
    if not summary(name):
        yield f"{name.home}: no docstring (of a value: a `#:` comment in front of it)"
    value = name.value
    if inspect.isroutine(value):
        texts = [text_of(name)]
    elif inspect.isclass(value):
        made_by = [base for base in value.__mro__ if "__init__" in vars(base)][:1]
        texts = [inspect.cleandoc(vars(c).get("__doc__") or "") for c in [value, *made_by]]
        texts += [inspect.getdoc(vars(c)["__init__"]) or "" for c in made_by]
    else:
        return
    if not (inspect.isclass(value) and (Protocol in value.__bases__ or issubclass(value, BaseException))):
        yield from (f"{name.home}: parameter {word} is not described" for word in undescribed(texts, parameters(value)))


def lacks_in_members(name: Name) -> Iterator[str]:
    """Yield what lacks at the members of a class; tests of a suite take what pytest gives them."""
    owner = name.value
    for word in members(owner):
        here = f"{name.home}.{word}"
        if not text_of_member(owner, word):
            yield f"{here}: no docstring (of a value: an entry under Attributes, or a `#:` comment in front of it)"
        function = function_of(owner, word)
        if function is not None and not word.startswith("test_"):
            known = function.__name__  # what it is described under, where a member is another name for it
            alike = [c for c in owner.__mro__ if known in vars(c)] + protocols(known)
            texts = [inspect.getdoc(getattr(c, known, None)) or "" for c in alike]
            texts += [inspect.cleandoc(vars(c).get("__doc__") or "") for c in owner.__mro__[:-1]]
            missing = undescribed(texts, parameters(function))
            yield from (f"{here}: parameter {parameter} is not described" for parameter in missing)


def problems(described: set[str]) -> list[str]:
    """Return what lacks in the reference, a line each.

    Args:
        described: The dotted names that the built reference describes.
    """
    found = []
    for name in names():
        homes = [name.home]
        if inspect.isclass(name.value):
            homes += [f"{name.home}.{word}" for word in members(name.value)]
        if name.here:
            found += [f"{home}: not in the reference" for home in homes if home not in described]
            found += lacks(name)
            found += lacks_in_members(name) if inspect.isclass(name.value) else []
    return found


def main(html: str) -> int:
    """Check what Sphinx has built in a folder; return the exit status."""
    found = problems(built(Path(html) / "objects.inv"))
    total = sum(name.here for name in names())
    inside = sum(len(members(name.value)) for name in names() if name.here and inspect.isclass(name.value))
    print(*found, f"{total} public names with {inside} members: {len(found)} problems", sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
