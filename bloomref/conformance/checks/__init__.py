"""The checks that properties are made of: parity with the oracle, invariants, gradients, and the public API."""
