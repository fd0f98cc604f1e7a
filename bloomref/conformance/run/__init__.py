"""A run of the kit: cases are drawn, checked, waived and counted. Its pytest side is `conformance.suite`.

Modules in reading order: `resolve` (find the implementation), `waivers` (known failures), `results` (counts and
report), `runner` (draw and check).
"""
