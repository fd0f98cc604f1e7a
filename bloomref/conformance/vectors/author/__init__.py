"""Writes and checks specs/vectors. Nothing outside `bloomref vectors` imports it."""
