"""The published claims about routers of tokens, measured on small models trained here.

One module a system, each with ``verify(full) -> Verdict`` and its rules written above the code.
Without ``full`` a claim takes minutes; with it, longer runs and more seeds, kept on disk so that a
stopped job continues.
"""
