"""The test vectors: cases of the specification as files, for those who have no Python. `bloomref vectors` writes them to specs/vectors."""
