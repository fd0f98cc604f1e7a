"""The conformance kit: is an implementation of BLOOM right, and if not, where does it go wrong first?"""
