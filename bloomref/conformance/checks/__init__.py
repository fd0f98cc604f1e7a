"""Checks that properties are made of. Each yields judgements of the answers of a subject about a case.

Modules in reading order: `outcome` (Failure, Inconclusive, and how judgements become one result), `rerun` (run a
subject, compare two runs), `parity` (comparison with the oracle), `invariants` (inputs that mean the same),
`public_api` (accepted and refused arguments), `gradients` (loss and gradients).
"""
