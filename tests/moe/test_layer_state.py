"""What a layer keeps and what not: copies, compiled calls, loops, shared and bypassed routers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from crossroads.core.errors import InputError
from crossroads.core.routed import LayerRecord, ModelOutput, RouteContext, SublayerOutput
from crossroads.moe.commits import Commits
from crossroads.moe.contract import RouterInput, RouterOutput
from crossroads.moe.experts import FFNBank
from crossroads.moe.layer import GateSharing, MoELayer
from crossroads.moe.ranks import Ranks
from crossroads.moe.routers import build_router
from crossroads.moe.routers.loss_free import LossFree

D, E = 8, 4
TRAINING = RouteContext(training=True, step=1, seed=3)


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(seed))


def layer(router: str = "loss-free", *, n_routers: int = 1, **settings: Any) -> MoELayer:
    torch.manual_seed(0)
    made = [build_router(router, D, E) for _ in range(n_routers)]
    return MoELayer(made, FFNBank(D, 12, made[0].kinds), norm=nn.LayerNorm(D), **settings)


def advanced(made: MoELayer, answer: SublayerOutput) -> dict[str, Tensor]:
    made.commit(made.stats(answer.decisions), answer.new_state)
    return made.state_dict()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("router", ["loss-free", "vqmoe"])
def test_a_copy_of_a_layer_answers_alike_and_has_a_router_of_its_own(
    duplicate: Any, router: str
) -> None:
    made = layer(router)
    twin = duplicate(made)
    h = tokens(2, 5)
    ours, its = made(h, TRAINING), twin(h, TRAINING)
    assert torch.equal(ours.delta, its.delta)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    changed = advanced(twin, its)
    assert any(not torch.equal(changed[name], value) for name, value in before.items())
    assert all(torch.equal(made.state_dict()[name], value) for name, value in before.items())
    assert twin.routers[0] is twin.router


@pytest.mark.slow
# Of the compiler itself, where it leaves the graph and where it meets a backward pass by hand:
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
# Routers that differ most; the others make these choices in another mix. Each compiles for seconds.
@pytest.mark.parametrize(
    "router", ["loss-free:k=2", "soft:slots=2", "vqmoe", "adamoe", "softmax-ec", "top-p"]
)
def test_a_compiled_model_gives_the_same_outputs_gradients_and_state(router: str) -> None:
    torch.compiler.reset()  # else the compiler gives up on code it met with eight routers before

    def run(compiled: bool) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
        made = layer(router)
        call = torch.compile(made, backend="aot_eager") if compiled else made
        h = tokens(2, 6).requires_grad_()
        answer = call(h, TRAINING)
        aux = [term.weighted for term in answer.aux.values()]
        (answer.delta.square().sum() + sum(aux, torch.zeros(()))).backward()
        grads = [h.grad, *(p.grad for p in made.parameters() if p.grad is not None)]
        return answer.delta.detach(), grads, advanced(made, answer)

    plain, same = run(False), run(True)
    torch.testing.assert_close(same, plain)


@pytest.mark.parametrize("router", ["switch", "sigmoid", "soft:slots=2", "sinkhorn-tc"])
def test_mixed_precision_decides_in_float32(router: str) -> None:
    made, h = layer(router), tokens(2, 6)
    plain = made(h)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(h)
    decided, wanted = mixed.decisions[0], plain.decisions[0]
    assert decided.logits_NE.dtype == torch.float32
    torch.testing.assert_close(decided.logits_NE, wanted.logits_NE, rtol=0, atol=1e-2)
    torch.testing.assert_close(mixed.delta.float(), plain.delta, rtol=0.05, atol=0.05)


def test_decisions_of_a_loop_are_given_back_one_by_one() -> None:
    made = layer("switch", n_routers=2, n_iter=2)
    h = tokens(2, 5)
    first = made(h)
    again = made(h, decision=first.decisions)
    assert torch.equal(again.delta, first.delta)
    assert not torch.equal(made(h, decision=first.decisions[0]).delta, first.delta)
    by_context = made(h, RouteContext(decisions={0: first.decisions}))
    assert torch.equal(by_context.delta, first.delta)


def test_too_few_decisions_for_a_loop_are_refused() -> None:
    made = layer("switch", n_routers=3, n_iter=3)
    h = tokens(1, 4)
    with pytest.raises(InputError, match=r"decision: layer 0 runs 3 times, got 2"):
        made(h, decision=made(h).decisions[:2])


def test_every_router_of_a_loop_advances_by_its_own_state() -> None:
    made = layer("vqmoe", n_routers=2, n_iter=2)
    answer = made(tokens(2, 5), TRAINING)
    assert sorted(answer.new_state) == ["0/codes", "1/codes"]
    advanced(made, answer)
    for index, router in enumerate(made.routers):
        assert bool(router.codebook.started)
        assert torch.equal(router.codebook.codes, answer.new_state[f"{index}/codes"])


@pytest.mark.parametrize("router", ["loss-free", "top-p:target=2.0"])
def test_a_decision_from_outside_moves_no_state_of_the_router_it_replaces(router: str) -> None:
    made, h = layer(router), tokens(2, 5)
    decided = made(h).decisions[0]
    before = {name: value.clone() for name, value in made.state_dict().items()}
    for outside in (decided, replace(decided, stats={})):
        after = advanced(made, made(h, TRAINING, decision=outside))
        assert all(torch.equal(after[name], value) for name, value in before.items())


class Counting(LossFree):
    """A loss-free router that counts the tokens it has seen while decoding, and its commits."""

    name = "counting"
    commits = 0

    def init_cache(self, batch: int) -> int:
        return 0

    def decide(self, inp: RouterInput) -> RouterOutput:
        mine = {f"seen-{id(self)}": inp.x_BTD}
        return replace(super().decide(inp), cache=inp.cache + inp.x_BTD.shape[1], carry=mine)

    def commit(self, stats: Mapping[str, Tensor], new_state: Mapping[str, Tensor]) -> None:
        self.commits += 1
        super().commit(stats, new_state)


@pytest.mark.parametrize(("sharing", "count"), [("independent", 2), ("module", 1)])
def test_every_iteration_of_a_loop_has_a_cache_of_its_own(sharing: GateSharing, count: int) -> None:
    routers = [Counting(D, E) for _ in range(count)]
    made = MoELayer(routers, FFNBank(D, 12, E), n_iter=2, gate_sharing=sharing)
    cache = made.init_cache(1)
    for length in (3, 1, 1):
        cache = made(tokens(1, length), cache=cache).cache
    assert cache == (5, 5)


def test_a_router_hands_on_what_others_carry() -> None:
    made = MoELayer(Counting(D, E), FFNBank(D, 12, E))
    other = tokens(1, 3, seed=5)
    answer = made(tokens(1, 3), carry={"other": other}, cache=0)
    assert answer.carry["other"] is other and len(answer.carry) == 2


def test_a_router_of_several_layers_advances_once_a_step_by_all_their_counts() -> None:
    torch.manual_seed(0)
    router = Counting(D, E)
    model = nn.ModuleList(
        MoELayer(router, FFNBank(D, 12, E), layer=number, n_layers=3) for number in range(3)
    )
    commits = Commits(model, Ranks())
    total_E = torch.zeros(E)
    for micro_batch in range(2):
        records = []
        for number, made in enumerate(model):
            answer = made(tokens(2, 5, seed=number + 10 * micro_batch), TRAINING, cache=0)
            total_E += answer.decisions[0].stats["count_E"]
            records.append(
                LayerRecord(
                    layer=number,
                    decisions=answer.decisions,
                    aux=answer.aux,
                    new_state=answer.new_state,
                    flops=answer.flops,
                )
            )
        commits.add(ModelOutput(out=torch.zeros(1), records=tuple(records)))
    commits.apply()
    assert router.commits == 1
    expected_E = router.rate * torch.sign(total_E.mean() - total_E)
    torch.testing.assert_close(router.bias_E, expected_E)
