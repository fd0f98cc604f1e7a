"""Implementations of BLOOM that the kit knows how to ask. Each module imports its own only when a model is loaded."""
