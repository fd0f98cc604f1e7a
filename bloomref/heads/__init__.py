"""Models that classify: a backbone with one linear head. Clauses: HEA-1 ... HEA-11."""
