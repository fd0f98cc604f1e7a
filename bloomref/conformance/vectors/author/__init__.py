"""Author of specs/vectors: drafts of the vectors, their numbers, and the check of the folder.

Only `bloomref vectors`, tools and tests import it. Whoever reads, asks or judges vectors does without.
"""
