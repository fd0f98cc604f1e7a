"""`bloomref diff`: two implementations side by side, the first intermediate that differs,
and the known mistake that explains it.
"""
