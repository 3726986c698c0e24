"""Tryage: send each prompt to the expert of least predicted loss, with the user's goals as flags.

Tryage (2023, arXiv 2308.11601). The router itself is ``crossroads.prompts.routers.tryage``; here
are its parts: predicted losses (``predictor``), flags inside prompts (``flags``), goals and the
decision that weighs them (``goals``), routing by flags (``flagged``), six language models trained
on text found on this machine (``corpora``, ``experts``, ``losses``), the baselines (``cards``,
``asked``) and what a choice costs (``measure``).
"""
