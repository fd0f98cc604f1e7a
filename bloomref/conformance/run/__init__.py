"""A run of the kit: examples are drawn, checked, waived and counted; `pytest_session` is its pytest side."""
