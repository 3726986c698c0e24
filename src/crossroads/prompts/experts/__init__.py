"""Experts that can answer a prompt: HTTP endpoints, a local language model, exact tools.

``crossroads.prompts.experts.registry.build_expert`` makes one from a pool's card; every one of
them obeys ``crossroads.prompts.experts.base.Expert``.
"""
