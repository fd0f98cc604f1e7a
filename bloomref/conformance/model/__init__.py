"""A BLOOM in which every operation can be overridden: known mistakes and Monte-Carlo rounding are made of it."""
