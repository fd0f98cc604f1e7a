"""Programs for the maintainers of bloomref: `python -m tools.NAME --help`.

They work on a checkout and are not part of the wheel.
"""
