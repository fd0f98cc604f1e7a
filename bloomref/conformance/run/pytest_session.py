"""A pytest run of the kit: its options, its header, what is tested, and the card at the end."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from bloomref.conformance.fixed_cases import PINNED
from bloomref.conformance.oracle.precision import tier_of
from bloomref.conformance.properties import PROPERTIES
from bloomref.conformance.run import resolve
from bloomref.conformance.run.results import Card, Tally
from bloomref.conformance.run.runner import EXAMPLES, Runner
from bloomref.conformance.run.waivers import Waivers, read_waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import NAME as VECTORS
from bloomref.conformance.vectors.topics import TOPICS
from bloomref.errors import BloomrefError

KIT = pytest.StashKey["Kit"]()
TALLY = "bloomref tally"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bloomref", "conformance of an implementation of BLOOM")
    group.addoption("--implementation", metavar="MODULE:NAME", help="an adapter: a class, or a function that makes one")
    group.addoption("--backend", metavar="NAME", help="a backend of bloomref: numpy, numba, cupy")
    group.addoption(
        "--program", metavar="COMMAND", help="a program that speaks the protocol of specs/97-program-protocol.md"
    )
    group.addoption("--dtype", action="append", metavar="NAME", help="repeatable; without it, all that are declared")
    group.addoption(
        "--examples", type=int, default=EXAMPLES, help="cases drawn for each property (default: %(default)s)"
    )
    group.addoption("--seed", type=int, default=0, help="draws other cases (default: %(default)s)")
    group.addoption(
        "--waivers", action="append", default=[], metavar="FILE", help="known failures, with reasons (TOML)"
    )
    group.addoption(
        "--require", action="store_true", help="fail where the implementation is not available, do not skip"
    )
    group.addoption("--conformance-json", metavar="FILE", help="also write the card as JSON")


class Kit:
    """What the options say, made once."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.adapter = resolve.adapter(option("--implementation"), option("--backend"), option("--program"))
        self.dtypes = tuple(option("--dtype") or self.adapter.capabilities.dtypes)
        for dtype in self.dtypes:
            tier_of(dtype)
        self.runner = Runner(option("--examples"), option("--seed"), Waivers(read_waivers(option("--waivers"))))
        self.required: bool = option("--require")
        self.card = Card(self.adapter.name, dict(self.adapter.versions()), self.dtypes, (*PROPERTIES, VECTORS))
        self.subjects = {dtype: Subject(self.adapter, dtype) for dtype in self.dtypes}
        self.whole = True
        """Whether everything was selected: only then can a waiver be called unneeded."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of the specification that a test checks")
    if config.option.help or config.option.version:
        return
    try:
        kit = config.stash[KIT] = Kit(config)
    except BloomrefError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(Reporter(kit, config.getoption("--conformance-json")))


def pytest_report_header(config: pytest.Config) -> list[str]:
    if KIT not in config.stash:
        return []
    kit = config.stash[KIT]
    versions = ", ".join(f"{name} {version}" for name, version in kit.card.versions.items())
    entries = kit.runner.waivers.entries
    return [
        f"conformance of {kit.adapter.name} ({versions})",
        f"  dtypes: {', '.join(kit.dtypes)}; scores of 16-bit types in {kit.adapter.capabilities.scores}",
        f"  machine: {platform.system()} {platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}",
        f"  cases: {len(PINNED)} pinned, {kit.runner.examples} drawn for each property, seed {kit.runner.seed}",
        f"  waivers: {len(entries)}" + "".join(f"\n    {w.where}: {w.reason}" for w in entries),
    ]


# --- what is tested ------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kit = metafunc.config.stash[KIT]
    pinned = {case.name: case for case in PINNED}
    topics = {name: name for name in sorted(TOPICS)}
    values: dict[str, Mapping[str, object]] = {
        "subject": kit.subjects,
        "found": PROPERTIES,
        "case": pinned,
        "topic": topics,
    }
    for argument in (name for name in values if name in metafunc.fixturenames):
        found, indirect = values[argument], argument == "subject"
        metafunc.parametrize(argument, list(found.values()), ids=list(found), indirect=indirect, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """All of a dtype together: a model is loaded once for several questions."""
    dtypes = config.stash[KIT].dtypes
    items.sort(key=lambda item: next((i for i, dtype in enumerate(dtypes) if f"[{dtype}-" in item.name), -1))


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[KIT].whole = False


@pytest.fixture(scope="session")
def kit(pytestconfig: pytest.Config) -> Kit:
    return pytestconfig.stash[KIT]


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest, kit: Kit) -> Subject:
    """The implementation in one dtype; where it is not available, a skip with the reason, or with `--require` a failure."""
    found: Subject = request.param
    reason = found.unavailable()
    if reason is not None and reason not in kit.card.absent:
        kit.card.absent.append(reason)
    if reason is not None and kit.required:
        pytest.fail(f"required, but not available: {reason}", pytrace=False)
    return found if reason is None else pytest.skip(reason)


# --- what comes out ------------------------------------------------------------------------------------------------


def note(item: pytest.Item, tally: Tally) -> None:
    """Put into the test's report: it also reaches the process that prints the card, where several run."""
    item.user_properties.append((TALLY, asdict(tally)))


class Reporter:
    """Gathers the tallies, and ends the run with the card."""

    def __init__(self, kit: Kit, path: str | None) -> None:
        self.kit = kit
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else []:
            if name == TALLY:
                self.kit.card.add(Tally(**value))  # type: ignore[arg-type]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A waiver that is not needed fails the run, if all of the suite was run in it."""
        card = self.kit.card
        if self.kit.whole and card.tallies:
            card.stale = self.kit.runner.waivers.stale(self.kit.dtypes, card.matched, card.excused)
        if card.stale and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.path:
            Path(self.path).write_text(json.dumps(card.to_dict(), indent=2), "utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("conformance card")
        for line in self.kit.card.lines():
            terminalreporter.line(line, red=line in self.kit.card.stale)
