"""The figures of `python -m tools.structure`: right on small examples, within limits for the library."""

import pytest

from tools import structure
from tools.structure import (
    at_commit,
    between,
    components,
    cycles,
    definitions,
    import_graph,
    kit_room,
    main,
    of_kit,
    of_library,
    read_by_a_reader,
    repeated_names,
    room,
    upward,
    working_tree,
)

SOURCES = {
    "bloomref.a": "from bloomref.b import x",
    "bloomref.b": "def f():\n    import bloomref.a",
    "bloomref.c": "from bloomref import a, b",
    "bloomref.reference.ops": "from bloomref import c",
    "accel.one.memory": "class Step: ...",
    "accel.two.memory": "Step = int",
}


def test_imports_are_found_at_the_top_and_in_functions():
    graph = import_graph(SOURCES)
    assert graph["bloomref.b"] == {"bloomref.a"}
    assert graph["bloomref.c"] == {"bloomref.a", "bloomref.b"}


def test_a_cycle_is_a_component():
    graph = import_graph(SOURCES)
    edges = [(a, b) for a, targets in graph.items() for b in targets]
    assert components(graph, edges) == [{"bloomref.a", "bloomref.b"}]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({("a", "b"): 5, ("b", "c"): 2}, 0),
        ({("a", "b"): 5, ("b", "a"): 2}, 2),
        ({("a", "b"): 5, ("b", "c"): 1, ("c", "a"): 4}, 1),
        ({("a", "b"): 1, ("b", "a"): 1, ("c", "d"): 3, ("d", "c"): 2, ("a", "c"): 9}, 3),
    ],
)
def test_the_fewest_imports_that_point_upward(counts, expected):
    assert upward(counts) == expected


def test_a_reader_holds_everything_that_is_imported():
    modules = read_by_a_reader(SOURCES, import_graph(SOURCES))
    assert modules == {"bloomref.reference.ops", "bloomref.c", "bloomref.a", "bloomref.b"}


def test_one_role_in_both_accelerators_may_have_one_name():
    assert repeated_names(SOURCES) == []
    assert repeated_names({**SOURCES, "bloomref.runtime.memory": ""}) == ["memory"]


def test_classes_functions_and_aliases_are_definitions():
    inner = {"tools.other": "class A:\n    def note(self): ...\ndef f():\n    class Kept: ...\n    note = 1"}
    homes = definitions(SOURCES | inner)
    assert homes["Step"] == ["accel.one.memory", "accel.two.memory"]
    assert homes["note"] == homes["Kept"] == ["tools.other"]


@pytest.fixture(scope="module")
def graph():
    return import_graph(working_tree())


def test_the_house_has_one_direction_and_no_cycle(graph):
    assert upward(between(of_library(graph), room)) == upward(between(of_kit(graph), kit_room)) == 0
    assert cycles(of_library(graph)) == []


def test_the_forward_pass_can_be_held_in_mind(graph):
    """All of the library that a reader must know to follow the reference: vocabulary, operations, cache, trace."""
    sources = working_tree()
    modules = read_by_a_reader(sources, graph)
    names = {module.rpartition(".")[2] for module in modules}
    assert names >= {"shapes", "errors", "dtypes", "config", "alibi", "params", "ops", "cache", "model"}
    assert structure.lines(sources, modules) < 1020


def test_a_file_name_belongs_to_one_room():
    assert repeated_names(working_tree()) == []


def test_a_word_of_the_field_means_one_thing():
    """In the library and its tools; one function may make notes, and no name says only that something was kept."""
    homes = definitions(working_tree())
    assert len(homes.pop("note")) <= 1
    assert homes == {
        "Step": ["bloomref.runtime.backend"],
        "Adapter": ["bloomref.lora.adapter"],
        "Case": ["bloomref.conformance.cases"],
        "Kept": [],
    }


def test_an_unknown_commit_is_refused():
    with pytest.raises(SystemExit, match="expected a commit, got 'no-such-commit'"):
        at_commit("no-such-commit")


def test_the_command_prints_a_table(capsys, monkeypatch):
    monkeypatch.setattr(structure, "working_tree", lambda: SOURCES)
    main([])
    assert "| import cycles | 1 |" in capsys.readouterr().out
