"""The tests that `pytest --pyargs bloomref.conformance` collects. What they ask is in `conformance.properties` and `pinned`."""
