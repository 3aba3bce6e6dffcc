"""Packages import in one direction, and no module imports itself by way of others."""

from pathlib import Path

import pytest

from benchmarks.import_graph import BELOW, PACKAGES, Graph, against_direction, circles, draw, import_graph


@pytest.fixture(scope="module")
def graph() -> Graph:
    """That of the project, which takes seconds."""
    return import_graph()


@pytest.fixture
def tree(tmp_path: Path):
    """A function that writes modules, by dotted name, and gives their graph."""

    def write(sources: dict[str, str]):
        for name, source in sources.items():
            file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(source)
        return import_graph(tmp_path, PACKAGES)

    return write


def test_the_project_imports_downwards(graph: Graph) -> None:
    assert {module.partition(".")[0] for module in graph} == set(PACKAGES) == set(BELOW)
    assert against_direction(graph) == []


def test_the_project_has_no_circle_of_modules(graph: Graph) -> None:
    assert circles(graph) == []


def test_stages_and_evaluation_are_siblings() -> None:
    siblings = ["eval", "train_encoder", "train_generator"]
    assert all(BELOW[package].isdisjoint(siblings) for package in PACKAGES)


def test_an_import_upwards_is_found_wherever_it_stands(tree) -> None:
    graph = tree(
        {
            "faceclip.losses": "import makeup_plugin.app\n",
            "makeup_plugin.app": "def f():\n    from eval import report\n",
            "eval.report": "from train_encoder import task\nfrom faceclip.losses import x\n",
            "train_encoder.task": "",
        }
    )
    assert against_direction(graph) == [
        "eval.report → train_encoder.task",
        "faceclip.losses → makeup_plugin.app",
        "makeup_plugin.app → eval.report",
    ]


def test_circles_are_found_with_all_their_members(tree) -> None:
    graph = tree(
        {
            "faceclip.a": "from faceclip import b\n",
            "faceclip.b": "from faceclip.c import x\n",
            "faceclip.c": "def f():\n    import faceclip.a\n",
            "faceclip.d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from faceclip import e\n",
            "faceclip.e": "import faceclip.d, faceclip.a\n",
        }
    )
    assert circles(graph) == [["faceclip.a", "faceclip.b", "faceclip.c"]]
    assert graph["faceclip.d"] == frozenset()


def test_a_package_that_takes_names_from_its_modules_is_one_of_them(tree) -> None:
    sources = {"faceclip.data.__init__": "from faceclip.data.rows import row\n", "faceclip.data.rows": ""}
    assert circles(tree(sources)) == []
    sources["faceclip.data.rows"] = "from faceclip.data import row\n"
    assert circles(tree(sources)) == [["faceclip.data", "faceclip.data.rows"]]


def test_the_graph_counts_imports_between_folders(tree) -> None:
    graph = tree(
        {
            "faceclip.errors": "",
            "faceclip.data.rows": "from faceclip.errors import E\n",
            "faceclip.data.more": "from faceclip.data import rows\nfrom faceclip import errors\n",
            "makeup_plugin.app": "import faceclip.data.rows\n",
        }
    )
    assert draw(graph).splitlines() == [
        "makeup_plugin → faceclip.data 1",
        "faceclip      → (nothing)",
        "faceclip.data → faceclip 2",
    ]
