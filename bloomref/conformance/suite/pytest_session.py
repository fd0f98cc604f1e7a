"""A pytest run of the kit: options, header, parametrisation, and the report at the end."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from bloomref.conformance.backends.backend_properties import properties_of
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.oracle.precision import tier_of
from bloomref.conformance.run.resolve import implementation_of
from bloomref.conformance.run.results import Counts, Report
from bloomref.conformance.run.runner import EXAMPLES, Runner
from bloomref.conformance.run.waivers import Waivers, read_waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import NAME as VECTORS
from bloomref.conformance.vectors.topics import TOPICS
from bloomref.errors import BloomrefError

KIT = pytest.StashKey["Kit"]()
COUNTS = "bloomref counts"
"""Key of the counts in the user properties of a test report."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("bloomref", "conformance of an implementation of BLOOM")
    group.addoption(
        "--implementation", metavar="MODULE:NAME", help="a Python class, or a function that returns an instance"
    )
    group.addoption("--backend", metavar="NAME", help="a backend of bloomref: numpy, numba, cupy")
    group.addoption(
        "--program", metavar="COMMAND", help="a program that speaks the protocol of specs/97-program-protocol.md"
    )
    group.addoption("--dtype", action="append", metavar="NAME", help="repeatable (default: every declared dtype)")
    group.addoption(
        "--examples", type=int, default=EXAMPLES, help="number of cases drawn for each property (default: %(default)s)"
    )
    group.addoption("--seed", type=int, default=0, help="seed of the drawn cases (default: %(default)s)")
    group.addoption(
        "--waivers", action="append", default=[], metavar="FILE", help="TOML file of known failures; repeatable"
    )
    group.addoption("--require", action="store_true", help="fail, not skip, if the implementation is not available")
    group.addoption("--conformance-json", metavar="FILE", help="also write the report to this file as JSON")


class Kit:
    """Everything that the options determine."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.implementation = implementation_of(option("--implementation"), option("--backend"), option("--program"))
        self.dtypes = tuple(option("--dtype") or self.implementation.capabilities.dtypes)
        for dtype in self.dtypes:
            tier_of(dtype)
        self.runner = Runner(option("--examples"), option("--seed"), Waivers(read_waivers(option("--waivers"))))
        self.required: bool = option("--require")
        versions = dict(self.implementation.versions())
        self.properties = properties_of(self.implementation)
        self.report = Report(self.implementation.name, versions, self.dtypes, (*self.properties, VECTORS))
        self.subjects = {dtype: Subject(self.implementation, dtype) for dtype in self.dtypes}
        self.whole = True
        """True if no test was deselected: only then can a waiver be reported as not needed."""


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
    name, scores = kit.implementation.name, kit.implementation.capabilities.scores
    versions = ", ".join(f"{package} {version}" for package, version in kit.report.versions.items())
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
    entries = kit.runner.waivers.entries
    return [
        f"conformance of {name} ({versions})",
        f"  dtypes: {', '.join(kit.dtypes)}; scores of 16-bit types in {scores}",
        f"  machine: {machine}, Python {platform.python_version()}",
        f"  cases: {len(FIXED_CASES)} fixed, {kit.runner.examples} drawn for each property, seed {kit.runner.seed}",
        f"  waivers: {len(entries)}" + "".join(f"\n    {w.where}: {w.reason}" for w in entries),
    ]


# --- parametrisation -----------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    values: dict[str, Mapping[str, object]] = {
        "subject": metafunc.config.stash[KIT].subjects,
        "prop": metafunc.config.stash[KIT].properties,
        "case": {case.name: case for case in FIXED_CASES},
        "topic": {name: name for name in sorted(TOPICS)},
    }
    for argument in (name for name in values if name in metafunc.fixturenames):
        by_id, indirect = values[argument], argument == "subject"
        metafunc.parametrize(argument, list(by_id.values()), ids=list(by_id), indirect=indirect, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Sort by dtype, so that a loaded model serves several questions."""
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
    """The implementation in one dtype. If it is not available, skip with the reason, or with `--require` fail."""
    subject: Subject = request.param
    reason = subject.unavailable()
    if reason is None:
        return subject
    if reason not in kit.report.absent:
        kit.report.absent.append(reason)
    if kit.required:
        pytest.fail(f"required, but not available: {reason}", pytrace=False)
    pytest.skip(reason)


# --- results -------------------------------------------------------------------------------------------------------


def attach(item: pytest.Item, counts: Counts) -> None:
    """Attach the counts to the report of a test: pytest-xdist sends reports to the process that prints the table."""
    item.user_properties.append((COUNTS, asdict(counts)))


class Reporter:
    """Collects the counts of all tests and prints the report at the end."""

    def __init__(self, kit: Kit, path: str | None) -> None:
        self.kit = kit
        self.path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties if report.when == "call" else []:
            if name == COUNTS:
                self.kit.report.add(Counts(**value))  # type: ignore[arg-type]

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """A waiver that is not needed fails the run, if the whole suite was run."""
        report = self.kit.report
        if self.kit.whole and report.counts:
            report.stale = self.kit.runner.waivers.stale(self.kit.dtypes, report.matched, report.used)
        if report.stale and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.path:
            Path(self.path).write_text(json.dumps(report.to_dict(), indent=2), "utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        report = self.kit.report
        terminalreporter.section("conformance report")
        for line in report.lines():
            terminalreporter.line(line, red=line in report.stale)
