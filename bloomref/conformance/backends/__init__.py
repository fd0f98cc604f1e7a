"""Properties that only a backend has: its blocks, caches, roundings and arrays, asked through the backend interface.

Modules in reading order: `tested` (a backend and its prepared model under test), `wide_cases` (sizes that do not fit
tiles), the checks `single_blocks`, `cached_calls`, `host_arrays` and `memory_estimate`, `backend_properties` (the
list). `bloomref conform --backend` asks them after those of every implementation.
"""
