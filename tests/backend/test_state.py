"""A state machine over caches of one model:
whatever was done to a cache, a call gives what its history gives from scratch.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from backend_cases import POLICIES, Trial, config, rms, whole
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from strategies import Float32Case

from bloomref.dtypes import dtype_policy
from bloomref.runtime.engine import Engine, EngineCache

CAPACITY = 70
CONFIGS = (
    config(3, 7, 20),
    config(9, 4, 13, apply_residual_connection_post_layernorm=True, tie_word_embeddings=False),
)


@dataclass
class Branch:
    """A cache and the history that it should hold: ids and which are real, of the positions before the next one."""

    cache: EngineCache
    token_ids: Any
    is_real: Any
    last: tuple[int, bytes] | None = None

    @property
    def position(self) -> int:
        return self.token_ids.shape[1]


class CacheMachine(RuleBasedStateMachine):
    """Appends, repeats, rewinds and branches, over up to four caches of one prepared model."""

    backend = "numpy"
    policy = "float64"

    @initialize(model=st.sampled_from(CONFIGS), seed=st.integers(0, 1000), batch=st.integers(1, 3))
    def start(self, model: Any, seed: int, batch: int) -> None:
        self.trial = Trial(Float32Case(model, seed, gain=0.3), self.policy, self.backend)
        self.engine = Engine(self.trial.params, model, dtype_policy(self.policy), self.backend)
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
        ids = rng.integers(0, self.trial.case.config.vocabulary_size, (len(branch.token_ids), time))
        real = rng.random(ids.shape) < 0.8
        start = branch.position
        hidden = self.engine.extend(branch.cache, start, ids, real)
        branch.token_ids, branch.is_real = np.hstack([branch.token_ids, ids]), np.hstack([branch.is_real, real])
        branch.last = start, hidden.tobytes()
        self.compare(branch, start, hidden)

    @rule(data=st.data())
    def repeat(self, data: Any) -> None:
        branch = data.draw(st.sampled_from(self.branches))
        if branch.last is not None:
            start, seen = branch.last
            again = self.engine.extend(branch.cache, start, branch.token_ids[:, start:], branch.is_real[:, start:])
            assert again.tobytes() == seen

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
        """Compare with a recomputation by the reference, and by this backend if its bits have to agree."""
        trial, layers = self.trial, self.trial.case.config.num_layers

        def recompute(prepared: Any) -> Any:
            return prepared.to_host(whole(prepared, layers, branch.token_ids, branch.is_real))

        exact = recompute(trial.truth)
        budget = trial.budget(recompute, exact, self.policy, branch.is_real)[:, start:]
        error = rms(hidden.astype(np.float64) - exact[:, start:])
        assert np.isfinite(error).all()
        assert (error <= budget)[branch.is_real[:, start:]].all()
        if trial.exact:
            assert hidden.tobytes() == np.ascontiguousarray(recompute(trial.tested)[:, start:]).tobytes()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_is_its_history(backend, policy):
    machine = type("Machine", (CacheMachine,), {"backend": backend, "policy": policy})
    run_state_machine_as_test(machine, settings=settings(max_examples=8, stateful_step_count=12, deadline=None))
