"""Check that no imports go in a circle, not even ones made late, inside a function.

Imports for type checkers alone do not count: they are never carried out.
"""

from __future__ import annotations

import sys

import grimp

PACKAGES = ["lt_interface", "lt_core", "lt_loggers", "lt_accel"]


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected groups of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            at = stack.index(module)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(edges):
        if module not in index:
            visit(module)
    return found


def main() -> int:
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    edges = {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}
    found = circles(edges)
    for group in found:
        print("These import one another in a circle:")
        for module in group:
            for other in sorted(edges[module] & set(group)):
                lines = [d["line_number"] for d in graph.get_import_details(importer=module, imported=other)]
                print(f"  {module}:{','.join(map(str, lines))} imports {other}")
    print(f"{len(edges)} modules, {len(found)} circles")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
