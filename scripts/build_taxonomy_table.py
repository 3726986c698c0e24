"""Write the table of routers in docs/prompts/choosing.md, from the routers' own attributes.

Run it after adding a router or changing its place; a test compares the committed page with what
this script gives. Routers of other packages are left out.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from crossroads.prompts.routers import router_class, router_names
from crossroads.prompts.taxonomy import Place, grouped, taxonomy

PAGE = Path(__file__).parents[1] / "docs" / "prompts" / "choosing.md"
ADDING = {"free": "nothing", "few examples": "a few of its outcomes", "refit": "another fit"}
BLOCK = re.compile(r"(<!-- taxonomy -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(places: Sequence[Place]) -> str:
    """Return one table for each timing and method that has routers, grouped by what they need."""
    parts = []
    for timing, at_timing in grouped(places, "timing").items():
        for method, at_method in grouped(at_timing, "method").items():
            title = "baselines and bounds" if method == "none" else method
            parts.append(f"**{timing}, {title}** ({len(at_method)})\n\n{_table(at_method)}")
    return "\n".join(parts)


def _table(places: Sequence[Place]) -> str:
    lines = [
        "| learns from | router | what it does | of use where models differ in | new model |",
        "|---|---|---|---|---|",
    ]
    for group in grouped(places, "needs").values():
        for at in group:
            axis = "anything" if at.axis == "any" else at.axis
            adding = ADDING[at.adding_a_model]
            lines.append(f"| {at.knowledge} | `{at.name}` | {at.summary} | {axis} | {adding} |")
    return "\n".join(lines) + "\n"


def rebuilt(page: Path = PAGE) -> str:
    """Return the page's text with the tables made anew."""
    ours = [n for n in router_names() if router_class(n).__module__.startswith("crossroads.")]
    made = tables(taxonomy(ours))
    return BLOCK.sub(lambda match: match.group(1) + made + match.group(2), page.read_text("utf-8"))


def main() -> None:
    PAGE.write_text(rebuilt(), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
