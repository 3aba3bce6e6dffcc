"""Which module of this project imports which: the direction of packages, circles, and the graph in the documentation.

    python -m benchmarks.import_graph            # prints the graph; exit status 1 where it breaks a rule
    python -m benchmarks.import_graph --write    # puts it into docs/architecture.md

Sources are parsed and not run, so that imports inside of functions count too; those for type checkers alone do not.
"""

import argparse
import ast
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("eval", "train_generator", "train_encoder", "makeup_plugin", "faceclip")
BELOW: Mapping[str, frozenset[str]] = {
    "eval": frozenset({"makeup_plugin", "faceclip"}),
    "train_generator": frozenset({"makeup_plugin", "faceclip"}),
    "train_encoder": frozenset({"makeup_plugin", "faceclip"}),
    "makeup_plugin": frozenset({"faceclip"}),
    "faceclip": frozenset(),
}
"""What each package may import: the trainings and the evaluation are siblings above the plugin above the encoder."""
PAGE, BEGIN, END = ROOT / "docs" / "architecture.md", "<!-- import graph -->", "<!-- end of import graph -->"

Graph = Mapping[str, frozenset[str]]


def import_graph(root: Path = ROOT, packages: Sequence[str] = PACKAGES) -> Graph:
    """Module → the modules of these packages that it imports, by dotted names."""
    files = {_name(file.relative_to(root)): file for package in packages for file in (root / package).rglob("*.py")}
    return {module: frozenset(_imported(file, set(files))) - {module} for module, file in sorted(files.items())}


def against_direction(graph: Graph) -> list[str]:
    """Imports that `BELOW` does not allow, as "module → module"."""
    return [
        f"{module} → {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if _package(module) != _package(other) and _package(other) not in BELOW[_package(module)]
    ]


def circles(graph: Graph) -> list[list[str]]:
    """Sets of modules that import each other, directly or by way of others: the strongly connected components of more
    than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in order:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], order[other])
        if low[module] == order[module]:
            component = stack[stack.index(module) :]
            del stack[-len(component) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in order:
            visit(module)
    return sorted(found)


def draw(graph: Graph) -> str:
    """One line per part of the project, a part being a package or a folder in it: which parts it imports, and how many
    imports of modules that are."""
    parts: dict[str, Counter[str]] = {}
    for module, others in graph.items():
        line = parts.setdefault(_part(module, graph), Counter())
        line.update(_part(other, graph) for other in others)
    for part, line in parts.items():
        line.pop(part, None)
    width = max(map(len, parts))
    places = {package: place for place, package in enumerate(PACKAGES)}
    lines = []
    for part in sorted(parts, key=lambda part: (places[_package(part)], part)):
        below = " · ".join(f"{other} {count}" for other, count in sorted(parts[part].items()))
        lines.append(f"{part:<{width}} → {below or '(nothing)'}")
    return "\n".join(lines)


def _part(module: str, graph: Graph) -> str:
    """ "faceclip.data" of "faceclip.data.arrays", "faceclip" of "faceclip.encoder"."""
    words = module.split(".")
    folder = len(words) > 2 or any(other.startswith(f"{module}.") for other in graph)
    return ".".join(words[:2]) if folder else words[0]


def _package(module: str) -> str:
    return module.partition(".")[0]


def _name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def _imported(file: Path, modules: set[str]) -> Iterator[str]:
    for node in _run(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            yield from inner
            if node.module in modules and len(inner) < len(node.names):
                yield node.module


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes below one that are ever run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            continue
        yield child
        yield from _run(child)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="put the graph into docs/architecture.md")
    options = parser.parse_args(argv)
    graph = import_graph()
    drawn = draw(graph)
    print(drawn)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n```\n{drawn}\n```\n{END}{after}", encoding="utf-8")
    wrong = [f"against the direction: {line}" for line in against_direction(graph)]
    wrong += [f"circle: {', '.join(circle)}" for circle in circles(graph)]
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
