"""Adapters of implementations of BLOOM. Each module imports its library only when a model is loaded."""
