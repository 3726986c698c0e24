"""Build an outcome table: run every prompt through every model of a pool and score the answers.

Each finished cell is appended to ``OUT.partial.jsonl`` and synced to the disk before it counts, so
a collection that is killed loses nothing that was answered, and running the same command again
continues it. A cell whose expert fails stays missing (a failure is not a wrong answer) and is asked
again next time; a cell that cannot be scored has no score. Grades of judges are calls like others:
kept, priced, and not asked twice. The table itself is written once, at the end, in the outcome
contract of ``crossroads.prompts.outcomes``; scores and costs are computed then, from the kept
answers.
"""

from crossroads.prompts.collect.items import PromptItem, read_prompts
from crossroads.prompts.collect.partial import PartialFile
from crossroads.prompts.collect.report import CollectEstimate, CollectReport, Failure, summarise
from crossroads.prompts.collect.run import collect, estimate, write_rows
from crossroads.prompts.collect.settings import EVERY_MODEL, CollectSettings

__all__ = [
    "EVERY_MODEL",
    "CollectEstimate",
    "CollectReport",
    "CollectSettings",
    "Failure",
    "PartialFile",
    "PromptItem",
    "collect",
    "estimate",
    "read_prompts",
    "summarise",
    "write_rows",
]
