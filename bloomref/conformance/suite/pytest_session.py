"""A pytest run of the kit: options, header, parametrisation, and the report at the end."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.resolve import TIMEOUT
from bloomref.conformance.run.runner import EXAMPLES
from bloomref.conformance.run.selection import Selection
from bloomref.conformance.subject import Subject
from bloomref.conformance.suite.asking import KINDS
from bloomref.conformance.suite.kit import Kit, Options
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
    group.addoption("--only", action="append", default=[], metavar="PROPERTY", help="ask only these; repeatable")
    group.addoption(
        "--case", action="append", default=[], metavar="NAME", help="ask only these fixed cases; repeatable"
    )
    group.addoption("--program-timeout", type=float, default=TIMEOUT, help="seconds for one request to a program")
    group.addoption("--program-keep", type=Path, metavar="DIR", help="keep the requests to a program in this folder")
    group.addoption("--require-all", action="store_true", help="also fail if a question is refused or cannot be asked")
    group.addoption("--require", action="store_true", help="fail, not skip, if the implementation is not available")
    group.addoption("--conformance-json", metavar="FILE", help="also write the report to this file as JSON")


def _options(config: pytest.Config) -> Options:
    option = config.getoption
    return Options(
        implementation=option("--implementation"),
        backend=option("--backend"),
        program=option("--program"),
        dtypes=tuple(option("--dtype") or ()),
        examples=option("--examples"),
        seed=option("--seed"),
        waivers=tuple(option("--waivers")),
        require=option("--require"),
        require_all=option("--require-all"),
        selection=Selection(tuple(option("--only")), tuple(option("--case"))),
        timeout=option("--program-timeout"),
        keep=option("--program-keep"),
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "clause(*ids): the clauses of the specification that a test checks")
    if config.option.help or config.option.version:
        return
    try:
        kit = config.stash[KIT] = Kit(_options(config))
    except BloomrefError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(Reporter(kit, config.getoption("--conformance-json")))


def pytest_report_header(config: pytest.Config) -> list[str]:
    return config.stash[KIT].header() if KIT in config.stash else []


# --- parametrisation -----------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    kit = metafunc.config.stash[KIT]
    asked = kit.questions()
    names = {kind: {question.name: question.name for question in asked if question.kind == kind} for kind in KINDS}
    values: dict[str, Mapping[str, object]] = {
        "subject": kit.subjects,
        "prop": names["drawn"],
        "case": names["fixed"],
        "topic": names["vectors"],
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
        items[0].config.stash[KIT].report.whole = False


@pytest.fixture(scope="session")
def kit(pytestconfig: pytest.Config) -> Kit:
    return pytestconfig.stash[KIT]


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    """The implementation in one dtype. If it cannot be asked, skip with the reason; the report has it, too."""
    subject: Subject = request.param
    reason = subject.problem() or subject.unavailable()
    if reason is not None:
        pytest.skip(reason)
    return subject


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
        """Fail the run for what no test can: a waiver that is not needed, an implementation that is required."""
        if session.config.option.collectonly:
            return
        if not self.kit.finish() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if self.path:
            Path(self.path).write_text(json.dumps(self.kit.report.to_dict(), indent=2), "utf-8")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        report = self.kit.report
        terminalreporter.section("conformance report")
        for line in report.lines():
            terminalreporter.line(line, red=line in report.stale)
