"""A run of the kit: cases are drawn, checked, waived and counted. Its pytest side is `conformance.suite`.

Modules in reading order: `resolve` (find the implementation), `selection` (the part of the kit that is asked),
`waivers` (known failures), `runner` (draw and check), `counts` (outcomes and reasons), `verdicts` (what a run may
claim), `failures` (equal ones are reported once), `results` (the report), `texts` (lines of it).
"""
