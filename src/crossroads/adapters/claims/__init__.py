"""The published claims about routing among adapters, measured here.

One module a system, each with ``verify(full) -> Verdict`` and its rules written above the code.
"""
