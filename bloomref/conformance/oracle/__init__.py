"""The oracle: the float64 truth of a case, and the error that rounding explains at each of its numbers."""
