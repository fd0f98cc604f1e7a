"""A whole run: `kit` has the options, `asking` the questions, `command` the run of `bloomref conform`.

The pytest side: `pytest_session` has the options and the report, `test_conformance` the tests that
`pytest --pyargs bloomref.conformance` collects.
"""
