from __future__ import annotations

from crossroads.prompts.routerarena.names import canonical_name


def test_case_and_spaces_do_not_matter() -> None:
    assert canonical_name(" GPT-4o ") == canonical_name("gpt-4o")


def test_aliases_must_be_spelt_in_full() -> None:
    aliases = {"openai/gpt-4o": "gpt-4o"}
    assert canonical_name("OpenAI/GPT-4o", aliases) == "gpt-4o"
    assert canonical_name("openai/gpt-4o-mini", aliases) == "openai/gpt-4o-mini"
