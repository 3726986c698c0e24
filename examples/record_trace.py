"""Train a small language model of experts, record what its routers decide, and read the trace.

    python examples/record_trace.py            # some seconds on one core

The text is this script, the tokens are its bytes; nothing is fetched.
"""

from pathlib import Path

import torch

from crossroads.core.routed import RouteContext
from crossroads.core.trace import RoutingTrace
from crossroads.core.trace_views import transitions, window_counts
from crossroads.models.decoder import DecoderConfig, DecoderLM
from crossroads.moe.building import MoEFactory, MoESpec
from crossroads.moe.diagnostics import layer_agreement, saturation, specialisation, summarise_trace
from crossroads.moe.recording import Recorder, kinds_of

LENGTH, STEPS = 64, 60


def record(model: DecoderLM, windows_ST: torch.Tensor) -> RoutingTrace:
    recorder = Recorder(kinds=kinds_of(model), meta={"model": "bytes", "source": "this script"})
    context = RouteContext(causal=True)
    with torch.no_grad():
        for tokens_BT in windows_ST.split(8):
            recorder.record(model(tokens_BT, context=context), context, token_id_BT=tokens_BT)
    return recorder.trace()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    windows_ST = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)
    config = DecoderConfig(width=64, num_layers=3, max_length=LENGTH)
    model = DecoderLM(config, sublayer=MoEFactory(MoESpec(router="switch"), num_layers=3))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    checkpoints = [record(model, windows_ST)]
    for step in range(STEPS):
        tokens_BT = windows_ST[torch.randint(len(windows_ST), (8,))]
        output = model(tokens_BT, context=RouteContext(causal=True, training=True, step=step))
        logits_NV = output.out[:, :-1].flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits_NV, tokens_BT[:, 1:].flatten())
        (loss + output.aux_loss()).backward()
        optimiser.step()
        optimiser.zero_grad()
        if (step + 1) % 20 == 0:
            checkpoints.append(record(model, windows_ST))

    trace = checkpoints[-1]
    trace.save(Path("trace.npz"))
    trace = RoutingTrace.load(Path("trace.npz"))
    print(
        f"{trace.n_tokens} tokens, {trace.n_columns} layers, {trace.n_experts} experts: trace.npz"
    )
    for column, found in enumerate(summarise_trace(trace)):
        token = specialisation(trace, column)
        windows = (window_counts(trace, column, 16) > 0).sum(1).mean()
        print(
            f"layer {column}: load CV {found.cv:.2f}, dead {len(found.dead)}, tells the byte "
            f"{token.corrected:.2f}, experts in 16 tokens {windows:.1f}"
        )
    agreement = layer_agreement(trace, 0, 1)
    print(f"layers 0 and 1: matched {agreement.matched:.2f}, information {agreement.nmi:.2f}")
    print(f"most frequent step from layer 0 to 1: {transitions(trace)[0].max()} tokens")
    for step, overlap in zip(range(0, STEPS + 1, 20), saturation(checkpoints), strict=True):
        print(f"routing of step {step:>2} agrees with the last: {overlap.mean():.2f}")


if __name__ == "__main__":
    main()
