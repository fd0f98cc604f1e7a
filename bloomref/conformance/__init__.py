"""The conformance kit: tests whether an implementation of BLOOM is right, and locates the first wrong intermediate.

Reading order: `implementation` (what the kit calls), `cases` (models and inputs), `subject` (an implementation in one
dtype), `oracle` (truth and rounding budgets), `checks` (comparisons), `properties` (the list of requirements), `run`
(draws, counts, reports). Next to these: `vectors` (the same questions as files), `mistakes` (known mistakes that the
kit must detect), `diff` (where two implementations differ) and `adapters` (implementations that come with the kit).
"""
