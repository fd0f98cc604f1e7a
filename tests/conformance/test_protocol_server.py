"""Every question of the kit through the protocol: a program that is bloomref itself answers all of them."""

import shlex
import sys
from pathlib import Path

import pytest

from bloomref.conformance.adapters.program import Program
from bloomref.conformance.run.counts import Counts
from bloomref.conformance.run.waivers import Waivers
from bloomref.conformance.subject import Subject
from bloomref.conformance.vectors.ask import ask_all
from bloomref.conformance.vectors.read import locate, read
from bloomref.conformance.vectors.topics import TOPICS

SERVER = Path(__file__).parent / "protocol_server.py"


@pytest.fixture(scope="module")
def program():
    program = Program(shlex.join([sys.executable, str(SERVER)]))
    yield program
    program.close()


@pytest.mark.slow
@pytest.mark.clause("VEC-12", "PRG-14", "PRG-16")
def test_the_protocol_asks_every_vector(program):
    counts = Counts("vectors", "float32")
    for topic in TOPICS:
        ask_all(Subject(program, "float32"), topic, Waivers(), counts)
    assert (counts.passed, counts.not_asked, counts.refused) == (len(read(locate())), 0, 0)
