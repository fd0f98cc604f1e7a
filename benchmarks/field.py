"""The participants of a run, each in a separate process."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.progress import Progress

from benchmarks.children import Child, ChildError
from benchmarks.plan import Plan


class Field:
    """The participants that are still running. One that fails leaves; `absent` has its reason."""

    def __init__(self, plan: Plan, folder: Path, progress: Progress) -> None:
        self.plan, self.folder, self.progress = plan, folder, progress
        self.names = list(plan.participants)
        self.absent: dict[str, str] = {}
        self.children: dict[str, Child] = {}
        self.spent: dict[str, float] = {}
        self.bar = progress.add_task("", total=None)

    def each(self, what: str, act: Callable[[str], Any]) -> dict[str, Any]:
        """Results of `act(name)` for each participant in turn, without those that are None."""
        answers, began = {}, perf_counter()
        for name in list(self.names):
            self.say(f"{what}: {name}")
            try:
                answers[name] = act(name)
            except ChildError as error:
                self.drop(name, str(error))
        self.spent[what] = self.spent.get(what, 0) + perf_counter() - began
        return {name: answer for name, answer in answers.items() if answer is not None}

    def ask(self, name: str, **request: Any) -> dict[str, Any]:
        return self.children[name].ask(**request)

    def drop(self, name: str, reason: str) -> None:
        self.names.remove(name)
        self.absent[name] = reason
        if name in self.children:
            self.children.pop(name).close()

    def child(self, task: str, name: str) -> Child:
        """Start a new process of this participant."""
        arguments = (task, name, str(self.folder), self.plan.dtype)
        python = {"python": self.plan.pythons[name]} if name in self.plan.pythons else {}
        return Child("benchmarks.participants.child", *arguments, log=self.folder / f"{name}.log", **python)

    def once(self, task: str, name: str) -> dict[str, Any]:
        """Start a process that answers once; returns its answer."""
        child = self.child(task, name)
        try:
            return child.answer()
        finally:
            child.close()

    def say(self, text: str) -> None:
        self.progress.update(self.bar, description=text)

    def close(self) -> None:
        for child in self.children.values():
            child.close()
