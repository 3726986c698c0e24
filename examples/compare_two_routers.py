"""Is a router worth it for my pool? Compare two of them with the best single model, paired seeds.

Runs on the table that ships with the package: replayed outcomes of eleven language models of 2024
on 12,032 questions. Put the path of your own table in its place.
"""

from crossroads.core.arena import run_arena
from crossroads.prompts import read_outcomes
from crossroads.prompts.tasks import prompt_task


def main() -> None:
    task = prompt_task(read_outcomes("mmlu-pro:served"), name="served")
    board = run_arena(task, ["ridge", "knn"], seeds=3)
    print(board.description)
    for row in board.rows:
        print(f"{row.router:22} quality {row.metrics['quality'].mean:.4f}")
    gain = board.difference("ridge", "best-single", "quality")
    interval = f"95 % interval [{gain.low:+.4f}, {gain.high:+.4f}]"
    print(f"ridge - best-single: {gain.mean:+.4f}, {interval}")


if __name__ == "__main__":
    main()
