"""The pytest plugin and the command line, run as users run them, on right and wrong implementations."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from bloomref.conformance.cases import MASKS
from bloomref.conformance.implementation import FEATURES, Capabilities
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.tags import TAGS

MINE = """
import numpy as np
from bloomref.conformance.adapters.instrumented_model import InstrumentedImplementation
from bloomref.conformance.model.instrumented import InstrumentedModel
from bloomref.errors import Unsupported


class SeesPadding(InstrumentedModel):
    def visible(self, is_real, start):
        return super().visible(np.ones_like(is_real), start)


class Raises(InstrumentedModel):
    def scale(self):
        raise ZeroDivisionError("in my own code")


class Right(InstrumentedImplementation):
    name = "right"


def wrong():
    return InstrumentedImplementation(SeesPadding)


def raises():
    return InstrumentedImplementation(Raises)


class Absent(InstrumentedImplementation):
    def load(self, *_):
        raise Unsupported("mine: the driver is not installed")


class Unfinished:
    name = "unfinished"
"""
FEW = ("--dtype", "float32", "--examples", "2", "-k", "plain or drawn")


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE, "utf-8")
    return tmp_path


def run(folder: Path, *arguments: str, module: tuple[str, ...] = ("pytest", "-p", "bloomref.conformance.plugin")):
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "COLUMNS": "200"}
    command = [sys.executable, "-m", *module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def ask(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "--pyargs", "bloomref.conformance", *arguments)


def waivers(folder: Path, *entries: str) -> tuple[str, str]:
    path = folder / "waivers.toml"
    path.write_text("".join(f"[[waiver]]\n{entry}\n" for entry in entries), "utf-8")
    return ("--waivers", str(path))


def test_it_is_installed_as_a_plugin_under_the_name_of_its_module():
    """`-p bloomref.conformance.plugin` and the entry point must be one plugin, not two."""
    points = [point for point in entry_points(group="pytest11") if point.name == "bloomref.conformance.plugin"]
    assert [point.value for point in points] == ["bloomref.conformance.plugin"]


# --- what it says --------------------------------------------------------------------------------------------------


def test_the_reference_conforms(here):
    result = ask(here, "--backend", "numpy", *FEW)
    assert result.returncode == 0, result.stdout
    for part in ("conformance of numpy (bloomref ", "dtypes: float32;", "machine: ", "2 drawn", "waivers: 0"):
        assert part in result.stdout
    assert "numpy, float32: conforms in what was asked (" in result.stdout


@pytest.mark.slow
def test_a_mistake_is_red_with_its_sentence_and_clause(here):
    result = ask(here, "--implementation", "mine:wrong", *FEW)
    assert result.returncode == 1
    assert "padding: no real position attends to padding" in result.stdout
    assert "ATT-7, ATT-8" in result.stdout
    assert "Case(config=BloomConfig(" in result.stdout
    assert "float32: does not conform" in result.stdout


@pytest.mark.slow
@pytest.mark.clause("CNF-7")
def test_an_exception_is_shown_where_it_was_raised(here):
    result = ask(here, "--implementation", "mine:raises", *FEW)
    assert result.returncode == 1
    assert "the implementation raised ZeroDivisionError: in my own code" in result.stdout
    assert 'raise ZeroDivisionError("in my own code")' in result.stdout
    assert "instrumented_model.py" not in result.stdout  # no file of the kit


@pytest.mark.slow
def test_the_report_as_json(here):
    result = ask(here, "--implementation", "mine:Right", *FEW, "--conformance-json", "report.json")
    report = json.loads((here / "report.json").read_text("utf-8"))
    assert result.returncode == 0
    assert report["verdicts"] == {"float32": "conforms in what was asked"}
    assert {row["name"]: row["verdict"] for row in report["properties"]}["logits"] == "holds"
    assert report["stale_waivers"] == []
    keys = "implementation versions verdicts bounds properties stale_waivers not_available problems"
    assert set(report) == set(keys.split())
    keys = "name dtype held inconclusive waived failed worst reasons matched excused verdict"
    keys += " refused not_asked not_applicable reasons_by_outcome"
    assert all(set(row) == set(keys.split()) for row in report["properties"])


# --- waivers -------------------------------------------------------------------------------------------------------


def first_fast(*values: object) -> list[object]:
    """The first case is among the fast tests; each starts a process."""
    return [values[0], *(pytest.param(*value, marks=pytest.mark.slow) for value in values[1:])]


WAIVER = 'where = "{}"\nreason = "it sees padding; the specification is right"'
WRONG = ("--implementation", "mine:wrong", "--dtype", "float32", "--examples", "2")
COVERED = [WAIVER.format(f"*/{flag}") for flag in ("left-pad", "mask-hole")]


@pytest.mark.slow
@pytest.mark.clause("CNF-4")
def test_a_waiver_covers_what_it_names_and_no_more(here):
    result = ask(here, *WRONG, *waivers(here, *COVERED))
    assert result.returncode == 0, result.stdout
    assert re.search("float32: conforms.*, but for the waivers", result.stdout)
    assert "*/left-pad: it sees padding; the specification is right" in result.stdout
    result = ask(here, *WRONG, *waivers(here, *COVERED[1:]))
    assert result.returncode == 1
    assert "kind='left'" in result.stdout


@pytest.mark.slow
@pytest.mark.clause("CNF-4")
def test_a_waiver_that_is_not_needed_fails_the_run(here):
    entries = [WAIVER.format("no-such-property"), WAIVER.format("logits/long"), WAIVER.format("logits@float64")]
    result = ask(here, "--implementation", "mine:Right", *FEW[:4], *waivers(here, *entries))
    assert result.returncode == 1
    assert "waiver 'no-such-property' matches nothing" in result.stdout
    assert "waiver 'logits/long' is not needed: what it matches passes" in result.stdout
    assert "float64' " not in result.stdout  # nobody asked that dtype
    assert "float32: conforms" in result.stdout


@pytest.mark.slow
def test_a_part_of_the_suite_says_nothing_about_waivers(here):
    result = ask(here, "--implementation", "mine:Right", *FEW, *waivers(here, WAIVER.format("no-such-property")))
    assert result.returncode == 0, result.stdout


@pytest.mark.clause("CNF-4")
@pytest.mark.parametrize(
    ("entry", "message"),
    first_fast(
        ('where = "logits"', "where and reason, optionally link"),
        ('where = "logits"\nreason = "  "', "where and reason, optionally link"),
        ('where = "logits"\nreason = "x"\nuntil = "2030"', "where and reason, optionally link"),
        ("where = ", "expected a TOML file"),
    ),
)
def test_a_waiver_gives_a_reason(here, entry, message):
    result = ask(here, "--implementation", "mine:Right", *waivers(here, entry))
    assert result.returncode == 4
    assert message in result.stderr


@pytest.mark.slow
def test_a_waiver_file_by_name_comes_with_bloomref(here):
    result = ask(here, "--implementation", "mine:Right", "--waivers", "nobody")
    assert result.returncode == 4
    assert "transformers" in result.stderr


# --- what is not there ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.clause("CNF-8")
def test_not_available_is_a_skip_or_with_require_a_failure(here):
    result = ask(here, "--implementation", "mine:Absent", *FEW)
    assert result.returncode == 0
    assert "the driver is not installed" in result.stdout
    assert "float32: not checked" in result.stdout
    result = ask(here, "--implementation", "mine:Absent", *FEW, "--require")
    assert result.returncode == 1
    assert "mine: the driver is not installed" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    first_fast(
        (("--implementation", "no_such_module:Adapter"), "No module named 'no_such_module'"),
        (("--implementation", "mine:NoSuchName"), "NoSuchName"),
        (("--implementation", "mine"), "expected package.module:Name"),
        (("--implementation", "mine:Unfinished"), "without capabilities, load, versions"),
        (("--implementation", "mine:Right", "--backend", "numpy"), "expected one of --implementation, --backend and"),
        (("--implementation", "mine:Right", "--dtype", "int8"), "int8"),
        ((), "expected one of --implementation, --backend and --program"),
    ),
)
def test_a_wrong_command_line_is_one_sentence(here, arguments, message):
    result = ask(here, *arguments)
    assert result.returncode == 4
    assert message in result.stderr
    assert "Traceback" not in result.stderr


# --- other people's runs -------------------------------------------------------------------------------------------

FOREIGN = """
import sys


def pytest_addoption(parser):
    for name in ("--backend", "--dtype", "--require", "--seed", "--examples", "--program"):
        parser.addoption(name)


def pytest_configure(config):
    loaded = [name for name in ("numpy", "hypothesis", "bloomref.conformance.suite.pytest_session") if name in sys.modules]
    assert "bloomref.conformance.plugin" in sys.modules
    assert not loaded, loaded
"""


@pytest.mark.clause("CNF-9")
def test_another_run_of_pytest_is_left_alone(tmp_path):
    (tmp_path / "conftest.py").write_text(FOREIGN, "utf-8")
    (tmp_path / "test_x.py").write_text("def test_x(): pass\n", "utf-8")
    assert run(tmp_path, "-q").stdout.splitlines()[-1].startswith("1 passed")
    assert "--implementation" not in run(tmp_path, "--help").stdout
    assert "--implementation" in ask(tmp_path, "--noconftest", "--help").stdout


# --- bloomref conform ----------------------------------------------------------------------------------------------


def conform(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, "conform", *arguments, module=("bloomref",))


@pytest.mark.slow
def test_the_command_asks_the_same(here):
    result = conform(here, "--backend", "numpy", "--dtype", "float32", "--examples", "1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "numpy, float32: conforms" in result.stdout
    result = conform(here, "--implementation", "mine:raises", "--dtype", "float32", "--examples", "1", "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["verdicts"] == {"float32": "does not conform"}


@pytest.mark.slow
def test_the_command_refuses_what_it_does_not_understand(here):
    assert conform(here).returncode == 2
    assert conform(here, "--implementation", "mine:NoSuchName").returncode == 2
    assert "Example: bloomref conform" in conform(here, "--help").stdout


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_page_lists_every_property_and_tag():
    text = (Path(__file__).parents[2] / "docs/conformance.md").read_text("utf-8")
    for prop in PROPERTIES.values():
        needs = ", ".join(f"`{name}`" for name in prop.needs) or "`logits`"
        assert f"| `{prop.name}` | {prop.says} | {', '.join(prop.clauses)} | {needs} |" in text
    for name, tag in TAGS.items():
        assert f"| `{name}` | {tag.note} |" in text


def test_the_protocol_lists_every_capability_with_its_default():
    text = (Path(__file__).parents[2] / "specs/97-program-protocol.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("  | `")}
    defaults = {
        "dtypes": '`["float32"]`', "masks": "all", "features": "all", "scores": "`float32`", "max_time": "null",
        "repeatable": "true", "adapters": '`["peft"]`', "products": "`model`", "gradients": "null",
    }  # fmt: skip
    assert set(defaults) == {item.name for item in fields(Capabilities)}
    for name, default in defaults.items():
        assert rows[f"`{name}`"].endswith(f"| {default} |")
    assert Capabilities() == Capabilities(("float32",), MASKS, frozenset(FEATURES), "float32", None, True, ("peft",))
    assert all(f"`{name}`" in rows["`masks`"] for name in MASKS)
    assert all(f"`{name}`" in rows["`features`"] for name in FEATURES)
