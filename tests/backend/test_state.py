"""A state machine over caches of one model: whatever was done to a cache, a call gives the oracle's results for its
history."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from bloomref.config import BloomConfig
from bloomref.conformance.cases import Arrays, Case
from bloomref.conformance.oracle.budgets import judge
from bloomref.conformance.oracle.truth import truth
from bloomref.conformance.subject import Subject
from bloomref.runtime.engine import Engine, EngineCache

CAPACITY = 70
SIZES = {"vocabulary_size": 45, "num_layers": 2}
CONFIGS = (
    BloomConfig(**SIZES, num_heads=3, hidden_dim=21, intermediate_dim=20),
    BloomConfig(
        **SIZES,
        num_heads=9,
        hidden_dim=36,
        intermediate_dim=13,
        apply_residual_connection_post_layernorm=True,
        tie_word_embeddings=False,
    ),
)


@dataclass
class Branch:
    """A cache and its history: ids and which are real, of the positions before the next one."""

    cache: EngineCache
    token_ids: Any
    is_real: Any
    last: tuple[int, bytes] | None = None

    @property
    def position(self) -> int:
        return self.token_ids.shape[1]


class CacheMachine(RuleBasedStateMachine):
    """Appends, repeats, rewinds and branches, over up to four caches of one prepared model."""

    subject: Subject

    @initialize(config=st.sampled_from(CONFIGS), seed=st.integers(0, 1000), batch=st.integers(1, 3))
    def start(self, config: BloomConfig, seed: int, batch: int) -> None:
        self.case = Case(config, seed, gain=0.3)
        model: Any = self.subject.model(self.case)
        self.engine: Engine = model.engine
        self.branches: list[Branch] = []
        self.new(batch)

    def new(self, batch: int) -> None:
        empty = np.zeros((batch, 0), np.int64)
        self.branches.append(Branch(self.engine.new_cache(batch, CAPACITY), empty, empty.astype(bool)))

    @precondition(lambda self: len(self.branches) < 4)
    @rule(batch=st.integers(1, 3))
    def second_cache(self, batch: int) -> None:
        self.new(batch)

    @rule(data=st.data(), time=st.sampled_from((0, 1, 1, 2, 3, 13, 33)), seed=st.integers(0, 1000))
    def append(self, data: Any, time: int, seed: int) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        time = min(time, CAPACITY - branch.position)
        rng = np.random.default_rng(seed)
        ids = rng.integers(0, self.case.config.vocabulary_size, (len(branch.token_ids), time))
        real = rng.random(ids.shape) < 0.8
        start = branch.position
        hidden = self.engine.extend(branch.cache, start, ids, real)
        branch.token_ids, branch.is_real = np.hstack([branch.token_ids, ids]), np.hstack([branch.is_real, real])
        branch.last = start, hidden.tobytes()
        if time:
            self.compare(branch, start, hidden)

    @rule(data=st.data())
    def repeat(self, data: Any) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        if branch.last is not None:
            start, before = branch.last
            again = self.engine.extend(branch.cache, start, branch.token_ids[:, start:], branch.is_real[:, start:])
            assert again.tobytes() == before

    @rule(data=st.data())
    def rewind(self, data: Any) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        keep = data.draw(st.integers(0, branch.position))
        branch.token_ids, branch.is_real, branch.last = branch.token_ids[:, :keep], branch.is_real[:, :keep], None

    @precondition(lambda self: len(self.branches) < 4)
    @rule(data=st.data())
    def branch_off(self, data: Any) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        rows = np.array(data.draw(st.lists(st.integers(0, len(branch.token_ids) - 1), min_size=1, max_size=3)))
        self.branches.append(Branch(branch.cache.select(rows), branch.token_ids[rows], branch.is_real[rows]))

    def compare(self, branch: Branch, start: int, hidden: Any) -> None:
        """Judge the positions from `start` on by the rounding budget of the whole history."""
        batch, time = branch.token_ids.shape
        history = Arrays(token_ids=branch.token_ids, is_real=branch.is_real)
        case = replace(self.case, batch=batch, time=time, arrays=history)
        filled = truth(case).values["final_norm"].copy()
        filled[:, start:] = hidden
        [judgement] = judge(case, self.subject.tier, {"final_norm": filled})
        assert judgement.verdict != "fail", judgement.explanation


@pytest.mark.slow
def test_a_cache_is_its_history(subject: Subject) -> None:
    machine = type("Machine", (CacheMachine,), {"subject": subject})
    run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=12, deadline=None))
