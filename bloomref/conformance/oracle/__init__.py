"""The oracle: the float64 truth of a case, and the error that rounding explains at each position.

Modules in reading order: `precision` (unit roundoffs), `truth` (the float64 reference), `intermediates` (errors per
position), `montecarlo` (the model with random rounding errors), `budgets` (sigma, Z and verdicts), `matched_filter`
(mistakes below the noise), `rounding_profiles` (bit-level emulation of another implementation).
"""

from bloomref.conformance.oracle.truth import Truth, truth  # the function, not the module of that name

__all__ = ["Truth", "truth"]
