"""Accelerators for bloomref. They may import its vocabulary and `bloomref.runtime.backend`, never the reference."""
