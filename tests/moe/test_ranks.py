"""Two processes train as one does, and share checkpoints with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from crossroads.core.errors import UsageError
from crossroads.moe.ranks import Ranks
from crossroads.moe.training import train
from tests.moe import ranks_worker as worker
from tests.moe.processes import spawn


@pytest.mark.slow
def test_two_processes_train_like_one_and_it_continues_their_run(tmp_path: Path) -> None:
    spawn(2, worker.run, str(tmp_path))
    for router in worker.ROUTERS:
        out = worker.folder_of(tmp_path, router)
        logged = (out / "metrics.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line)["step"] for line in logged] == [1, 2, 3]  # one process writes
    out = tmp_path / "stopped"
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2
    spec = worker.spec(worker.ROUTERS[0])
    continued = train(worker.Double(), spec, worker.CONFIG, out=out)
    worker.same(continued, train(worker.Double(), spec, worker.CONFIG))


@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_every_micro_batch_is_somebodys(world: int) -> None:
    shares = [Ranks(rank, world).share(6) for rank in range(world)]
    assert [place for share in shares for place in share] == list(range(6))
    assert len({len(share) for share in shares}) == 1


def test_micro_batches_that_cannot_be_divided_are_refused() -> None:
    with pytest.raises(UsageError, match="micro_batches: 4 cannot be divided evenly over 3"):
        Ranks(0, 3).share(4)


def test_one_process_alone_changes_nothing() -> None:
    alone = Ranks.here()
    assert alone == Ranks(0, 1)
    assert alone.leads
    stats = {3: {"count": torch.ones(2)}}
    assert torch.equal(alone.summed(stats)[3]["count"], torch.ones(2))
    assert alone.summed(stats)[3]["count"] is not stats[3]["count"]
    state = {1: {"codes": torch.zeros(2)}}
    assert alone.latest(state)[1]["codes"] is state[1]["codes"]
    assert alone.total(1.5, 2.0) == (1.5, 2.0)
