"""Test vectors: cases of the specification as JSON and safetensors files, for implementations in any language.

`bloomref vectors` writes them to specs/vectors. Topics, reading, asking and judging are here; `author` writes them.
"""
