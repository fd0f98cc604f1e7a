"""The oracle: the float64 truth of a case, and the error that rounding explains at each of its numbers."""

from bloomref.conformance.oracle.truth import Truth, truth  # the function, not the module of that name

__all__ = ["Truth", "truth"]
