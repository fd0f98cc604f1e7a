"""A run of the kit: examples are drawn, checked, waived and counted."""
