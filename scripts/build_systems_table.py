"""Write docs/systems.md, the table of published systems, from the cards of the catalogue.

Run it after editing a card; a test compares the committed page with what this script gives.
"""

from __future__ import annotations

from pathlib import Path

from crossroads.core.catalog import Card, families, load_cards

PAGE = Path(__file__).parents[1] / "docs" / "systems.md"
HEADINGS = {
    "prompts": "Prompts to language models",
    "knowledge": "Questions to knowledge bases",
    "adapters": "Inputs to adapters",
    "moe": "Tokens to experts inside a network",
    "depth": "Tokens to layers",
    "cluster": "Experts to devices, flows to links",
    "world": "Vehicles, agents, signals and users",
    "design": "Generators of designs",
}


def render() -> str:
    """Return the page."""
    cards = load_cards()
    num_verified = sum(card.status == "verified" for card in cards)
    parts = [
        "# Systems\n\n"
        "<!-- Written by scripts/build_systems_table.py from core/cards.toml. -->\n\n"
        f"{len(cards)} published systems, {num_verified} verified. *Verified*: "
        "`crossroads verify NAME` measures the claim here. *Planned*: nothing to measure yet. "
        "Figures under *their claim* are the authors'; *ours* is what we measured.\n"
    ]
    for family in families():
        rows = [_row(card) for card in cards if card.family == family]
        parts.append(
            f"\n## {HEADINGS[family]}\n\n"
            f"Family `{family}`.\n\n"
            "| Name | System | Routes | Their claim | Ours | Status |\n"
            "|---|---|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    return "".join(parts)


def _row(card: Card) -> str:
    cells = (
        f"`{card.name}`",
        f"[{card.title}]({card.url}) ({card.year})",
        card.routes,
        card.claim.paper,
        card.claim.ours,
        card.status,
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(render(), "utf-8")
    print(f"wrote {PAGE.name}")
