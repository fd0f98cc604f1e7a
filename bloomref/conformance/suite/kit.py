"""Everything that the options of a run determine: the implementation, its dtypes, the questions, the report."""

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bloomref import __version__
from bloomref.conformance.backends.backend_properties import properties_of
from bloomref.conformance.cases import MASKS
from bloomref.conformance.fixed_cases import FIXED_CASES
from bloomref.conformance.implementation import DTYPES, FEATURES, Capabilities, Implementation
from bloomref.conformance.lora_cases import FORMS
from bloomref.conformance.oracle.precision import tier_of
from bloomref.conformance.run.resolve import TIMEOUT, implementation_of
from bloomref.conformance.run.results import Report
from bloomref.conformance.run.runner import EXAMPLES, Runner
from bloomref.conformance.run.selection import Selection
from bloomref.conformance.run.verdicts import FAILS, is_unqualified
from bloomref.conformance.run.waivers import Waivers, read_waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.suite.asking import Answer, Question, ask, questions
from bloomref.conformance.vectors.ask import NAME as VECTORS
from bloomref.conformance.vectors.topics import TOPICS
from bloomref.errors import BloomrefError


@dataclass(frozen=True)
class Options:
    """Options of the command line, the same in `bloomref conform` and in pytest."""

    implementation: str | None = None
    backend: str | None = None
    program: str | None = None
    dtypes: tuple[str, ...] = ()
    examples: int = EXAMPLES
    seed: int = 0
    waivers: tuple[str, ...] = ()
    require: bool = False
    require_all: bool = False
    selection: Selection = field(default_factory=Selection)
    timeout: float = TIMEOUT
    keep: Path | None = None


class Kit:
    """A run of the kit, before its first question.

    Raises:
        InvalidInput, Unsupported: an option is wrong, or the implementation cannot be imported.
        BloomrefError: the implementation broke down before its first question.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.implementation: Implementation = _unbroken(
            lambda: implementation_of(
                options.implementation, options.backend, options.program, options.timeout, options.keep
            )
        )
        self.properties = properties_of(self.implementation)
        options.selection.check(self.properties, TOPICS)
        self.dtypes = options.dtypes or tuple(self.implementation.capabilities.dtypes)
        for dtype in self.dtypes:
            tier_of(dtype)
        waivers = read_waivers(options.waivers)
        self.runner = Runner(options.examples, options.seed, Waivers(waivers))
        versions = _unbroken(lambda: {"bloomref": __version__, **self.implementation.versions()})
        self.report = Report(
            self.implementation.name,
            versions,
            self.dtypes,
            (*self.properties, VECTORS),
            whole=options.selection.is_whole,
            waived={waiver.where: waiver.reason for waiver in waivers},
        )
        self.subjects = {dtype: Subject(self.implementation, dtype) for dtype in self.dtypes}

    def ready(self) -> dict[str, Subject]:
        """The subjects that can be asked, by dtype."""
        return {
            dtype: subject
            for dtype, subject in self.subjects.items()
            if subject.problem() is None and subject.unavailable() is None
        }

    def questions(self) -> list[Question]:
        """The questions in one dtype, in their order."""
        return questions(self.properties, self.options.selection)

    def ask(self, subject: Subject, question: Question) -> Answer:
        """Ask one question."""
        return ask(self.runner, subject, question, self.properties, self.options.selection)

    def finish(self) -> bool:
        """Complete the report. Return True if the run is a success."""
        for dtype, subject in self.subjects.items():
            problem, reason = subject.problem(), subject.unavailable()
            if problem is not None:
                self.report.problems[dtype] = problem
            elif reason is not None and reason not in self.report.absent:
                self.report.absent.append(reason)
        report, options = self.report, self.options
        if report.whole and report.counts:
            report.stale = self.runner.waivers.stale(self.dtypes, report.matched, report.used)
        verdicts = [report.verdict(dtype) for dtype in self.dtypes]
        unmet = options.require_all and report.whole and not all(is_unqualified(verdict) for verdict in verdicts)
        absent = (options.require or options.require_all) and report.absent
        return not (report.stale or unmet or absent or FAILS in verdicts)

    def header(self) -> list[str]:
        """The implementation and its declaration, the dtypes, the machine, the cases and the waivers, a line each."""
        able, runner, selection = self.implementation.capabilities, self.runner, self.options.selection
        versions = ", ".join(f"{package} {version}" for package, version in self.report.versions.items())
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        entries = runner.waivers.entries
        only = ", ".join((*selection.only, *(f"case {name}" for name in selection.cases)))
        return [
            f"conformance of {self.implementation.name} ({versions})",
            f"  dtypes: {', '.join(self.dtypes)}; scores of 16-bit types in {able.scores}, products in {able.products}",
            f"  declares: {declared(able)}",
            f"  machine: {machine}, Python {platform.python_version()}",
            f"  cases: {len(FIXED_CASES)} fixed, {runner.examples} drawn for each property, seed {runner.seed}",
            *([f"  only: {only}"] if only else []),
            f"  waivers: {len(entries)}" + "".join(f"\n    {w.where}: {w.reason}" for w in entries),
        ]


def _unbroken(call: Callable[[], Any]) -> Any:
    """Convert an exception that is not bloomref's to a sentence."""
    try:
        return call()
    except BloomrefError:
        raise
    except Exception as error:
        raise BloomrefError(
            f"the implementation raised {type(error).__name__} before its first question: {error}"
        ) from error


def declared(able: Capabilities) -> str:
    """Return what the capabilities declare, in one line."""
    parts = [
        f"dtypes {_part(able.dtypes, DTYPES)}",
        f"masks {_part(able.masks, MASKS)}",
        f"features {_part(able.features, FEATURES)}",
        f"adapters {_part(able.adapters, FORMS)}",
        f"gradients in {_part(able.trains_in, able.dtypes)}",
    ]
    parts += [f"at most {able.max_time} positions"] if able.max_time is not None else []
    return "; ".join(parts + ["not repeatable"] * (not able.repeatable))


def _part(words: Any, known: tuple[str, ...]) -> str:
    """Name the words, or those of the kit that are missing, whichever is shorter."""
    missing = [word for word in known if word not in words]
    if not missing:
        return "all"
    names = [word for word in known if word in words]
    return f"all but {', '.join(missing)}" if len(missing) < len(names) else ", ".join(names) or "none"
