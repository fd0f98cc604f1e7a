"""The tests that `pytest --pyargs bloomref.conformance` collects: `conformance.properties` on drawn and on fixed cases, and the vectors."""
