"""The claims of the prompt family that can be measured here; one module per system.

Each has ``verify(full: bool) -> Verdict``, named by the system's card in ``core/cards.toml``.
"""
