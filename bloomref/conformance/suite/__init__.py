"""The pytest side of a run. `pytest_session` has its options and its report; `test_conformance` asks the properties and
the vectors."""
