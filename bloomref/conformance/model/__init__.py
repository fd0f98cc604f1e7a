"""Instrumented BLOOM: every operation can be overridden, for known mistakes and Monte-Carlo arithmetic."""
