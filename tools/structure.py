"""Measure the structure of the library, and compare it with an earlier commit: `python -m tools.structure --help`.

A room is a folder or a top-level module of `bloomref`, `accel` or `tools`. All imports count: at the top of a module,
in a function, and for type checkers only.
"""

import argparse
import ast
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("bloomref", "accel", "tools")
READER_STARTS_AT = ("bloomref.reference.ops", "bloomref.reference.cache", "bloomref.reference.model")
FIELD_NAMES = ("Step", "Adapter", "Kept", "Case", "note")
"""Names that had several meanings; their definitions are counted."""

Sources = Mapping[str, str]  # module -> text
Graph = Mapping[str, set[str]]


# --- sources -----------------------------------------------------------------------------------------------------


def module_name(path: Path) -> str:
    """Name of the module in a file; the path is relative to the repository."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def working_tree() -> dict[str, str]:
    """Map each module of the working tree to its text."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {module_name(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}


def at_commit(commit: str) -> dict[str, str]:
    """Map each module of a commit to its text.

    Raises:
        SystemExit: when git does not have the commit.
    """
    result = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
    if result.returncode:
        sys.exit(f"--before: expected a commit, got {commit!r}; git: {result.stderr.decode().strip()}")
    texts: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(result.stdout)) as archive:
        for member in archive:
            path = Path(member.name)
            if path.suffix == ".py" and path.parts[0] in PACKAGES:
                file = archive.extractfile(member)
                assert file is not None
                texts[module_name(path)] = file.read().decode()
    return texts


# --- graphs ------------------------------------------------------------------------------------------------------


def import_graph(sources: Sources) -> dict[str, set[str]]:
    """Map each module to the modules that it imports."""
    return {name: set(_imports(ast.parse(text), sources)) - {name} for name, text in sources.items()}


def _imports(tree: ast.AST, sources: Sources) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in sources)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (n for n in (name if name in sources else str(node.module) for name in names) if n in sources)


def room(module: str) -> str:
    """Room of a module: its folder in the package, or the top-level module, such as `bloomref.runtime`."""
    return ".".join(module.split(".")[:2])


def kit_room(module: str) -> str:
    """Room of a module of the conformance kit: its folder in the kit, or the module itself."""
    return ".".join(module.split(".")[:3])


def between(graph: Graph, room_of: Callable[[str], str]) -> dict[tuple[str, str], int]:
    """Count the imports between rooms: (room, imported room) -> number of imports of their modules."""
    counts: Counter[tuple[str, str]] = Counter()
    for module, targets in graph.items():
        counts.update((room_of(module), room_of(t)) for t in targets if room_of(module) != room_of(t))
    return dict(counts)


def components(nodes: Iterable[str], edges: Iterable[tuple[str, str]]) -> list[set[str]]:
    """Strongly connected components of at least two nodes."""
    reach: dict[str, set[str]] = {node: {node} for node in nodes}
    targets = defaultdict(set)
    for a, b in edges:
        targets[a].add(b)
    for node in reach:
        waiting = [node]
        while waiting:
            new = targets[waiting.pop()] - reach[node]
            reach[node] |= new
            waiting += new
    groups = {frozenset(b for b in reach[a] if a in reach[b]) for a in reach}
    return sorted((set(group) for group in groups if len(group) > 1), key=sorted)


def upward(counts: Mapping[tuple[str, str], int]) -> int:
    """Smallest number of upward imports in any order of the rooms: an exact minimum feedback arc set."""
    rooms = {room for pair in counts for room in pair}
    return sum(_upward_within(sorted(group), counts) for group in components(rooms, counts))


def _upward_within(rooms: list[str], counts: Mapping[tuple[str, str], int]) -> int:
    """Solve one component by dynamic programming: fewest[s] is the minimum over all orders of the set s of rooms."""
    weights = [[counts.get((a, b), 0) for b in rooms] for a in rooms]
    fewest = [0] + [sys.maxsize] * (2 ** len(rooms) - 1)
    for below in range(2 ** len(rooms)):
        for i in range(len(rooms)):
            if not below >> i & 1:  # room i is above `below`, so imports of `below` from room i point upward
                cost = sum(weights[j][i] for j in range(len(rooms)) if below >> j & 1)
                fewest[below | 1 << i] = min(fewest[below | 1 << i], fewest[below] + cost)
    return fewest[-1]


def cycles(graph: Graph) -> list[set[str]]:
    """Groups of modules that import each other in a circle."""
    return components(graph, [(a, b) for a, targets in graph.items() for b in targets])


def of_library(graph: Graph) -> Graph:
    """The part of the modules that are in the wheel."""
    return {module: targets for module, targets in graph.items() if not module.startswith("tools")}


def of_kit(graph: Graph) -> Graph:
    """The part of the modules of the conformance kit, with the imports among them."""
    kit = {module: targets for module, targets in graph.items() if module.startswith("bloomref.conformance.")}
    return {module: {t for t in targets if t in kit} for module, targets in kit.items()}


def layers(graph: Graph) -> int:
    """Length of the longest chain of imports between rooms, where the rooms of a cycle count as one."""
    edges = between(graph, room)
    rooms = {r for module in graph for r in (room(module),)}
    name = {r: r for r in rooms} | {r: min(group) for group in components(rooms, edges) for r in group}
    targets: dict[str, set[str]] = {name[r]: set() for r in rooms}
    for a, b in edges:
        if name[a] != name[b]:
            targets[name[a]].add(name[b])
    depth: dict[str, int] = {}
    for r in TopologicalSorter(targets).static_order():
        depth[r] = 1 + max((depth[t] for t in targets[r]), default=0)
    return max(depth.values())


# --- figures -----------------------------------------------------------------------------------------------------


def lines(sources: Sources, modules: Iterable[str]) -> int:
    """Number of lines of the modules."""
    return sum(len(sources[module].splitlines()) for module in modules)


def read_by_a_reader(sources: Sources, graph: Graph) -> set[str]:
    """Modules that the reference's forward pass imports, directly or indirectly."""
    known, waiting = set[str](), [module for module in READER_STARTS_AT if module in sources]
    while waiting:
        module = waiting.pop()
        if module not in known:
            known.add(module)
            waiting += graph[module]
    return {module for module in known if sources[module].strip() and module not in PACKAGES}


def repeated_names(sources: Sources) -> list[str]:
    """Base names that several modules share. The same name in both accelerators counts once."""
    homes: dict[str, set[str]] = defaultdict(set)
    for module in sources:
        package, _, name = module.rpartition(".")
        is_package = any(other.startswith(f"{module}.") for other in sources)
        if not is_package and name != "__main__":
            homes[name].add("accel" if module.startswith("accel.") else package)
    return sorted(name for name, places in homes.items() if len(places) > 1)


def definitions(sources: Sources) -> dict[str, list[str]]:
    """Map each name of `FIELD_NAMES` to the modules that define it.

    Classes and functions count at any depth, aliases at the top of a module.
    """
    homes: dict[str, list[str]] = {name: [] for name in FIELD_NAMES}
    for module, text in sources.items():
        tree = ast.parse(text)
        names = [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
        for name in FIELD_NAMES:
            homes[name] += [module] * names.count(name)
    return homes


def figures(sources: Sources) -> dict[str, Any]:
    """All measurements of one version of the library, by description."""
    graph = import_graph(sources)
    library, kit = of_library(graph), of_kit(graph)
    reader = read_by_a_reader(sources, graph)
    return {
        "modules of the wheel": len(library),
        "lines of the wheel": lines(sources, library),
        "lines of tools": lines(sources, graph.keys() - library.keys()),
        "imports that point upward": upward(between(library, room)),
        "import cycles": len(cycles(library)),
        "layers of rooms": layers(library),
        "kit: rooms": len({kit_room(module) for module in kit}),
        "kit: imports between rooms": len(between(kit, kit_room)),
        "kit: imports that point upward": upward(between(kit, kit_room)),
        "lines that the reference imports": lines(sources, reader),
        "modules that the reference imports": len(reader),
        "base names of several modules": len(repeated_names(sources)),
        **{f"definitions called {name}": len(modules) for name, modules in definitions(sources).items()},
        "longest module": max(len(text.splitlines()) for text in sources.values()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the figures as a table or as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.structure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m tools.structure --before v0.1.0",
    )
    parser.add_argument("--before", metavar="COMMIT", help="also measure this commit, in a separate column")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    columns = {"now": figures(working_tree())}
    if options.before:
        columns = {options.before: figures(at_commit(options.before)), **columns}
    if options.json:
        print(json.dumps(columns, indent=2))
        return
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name in columns["now"]:
        print(f"| {name} | {' | '.join(f'{column[name]:,}' for column in columns.values())} |")


if __name__ == "__main__":
    main()
