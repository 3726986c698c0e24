"""Experts that can answer a prompt: HTTP endpoints, a local language model, exact tools.

:func:`~crossroads.prompts.experts.registry.build_expert` makes one from a pool's card; every one of
them obeys :class:`~crossroads.prompts.experts.base.Expert`.
"""
