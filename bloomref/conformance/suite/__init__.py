"""The pytest side of a run: `pytest_session` has the options, the header and the report; `test_conformance` has the
tests that `pytest --pyargs bloomref.conformance` collects."""
