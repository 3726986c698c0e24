"""Point at a folder of LoRA adapters in PEFT's layout, get one model that routes among them.

    python examples/route_my_loras.py [FOLDER] [PROMPT ...]

The adapters must be of SmolLM2-135M-Instruct; put your own model in the place of ``load_smollm2``
for others. Without a folder, the experts that ship with the package are routed. Tokens go to
adapters by the router that was saved with them; else by PHATGOOSE where all of them bring gates;
else by Arrow, which needs nothing but weights.
"""

import sys
from collections import Counter
from pathlib import Path

import torch

from crossroads.adapters.choice import choose_router
from crossroads.adapters.collection.shipped import shipped_folder
from crossroads.adapters.insertion import RoutedModel
from crossroads.adapters.layout import load_bank
from crossroads.models.smollm2_torch import load_smollm2, smollm2_tokenizer

PROMPTS = ("German: Wo ist der Bahnhof?\nEnglish:", "French: Je ne sais pas.\nEnglish:")


def votes(routed: RoutedModel) -> Counter[str]:
    """Count how often each expert is the first choice in the last forward pass."""
    first = [
        r.index[..., 0].flatten() for r in routed.last_routings.values() if r.index is not None
    ]
    names = routed.bank.names
    return Counter(names[place] for place in torch.cat(first).tolist())


def main() -> None:
    folder, *prompts = sys.argv[1:] or [str(shipped_folder())]
    bank = load_bank(folder)
    router = choose_router(None, bank, Path(folder))
    print(f"{len(bank.names)} adapters, router {router.name}: {', '.join(bank.names)}")
    model, tokenizer = load_smollm2(), smollm2_tokenizer()
    routed = RoutedModel(model, bank, router)
    for prompt in prompts or PROMPTS:
        ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
        with torch.no_grad():
            model(ids)
            counted = votes(routed)
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False
            )
        answer = tokenizer.decode(out[0, ids.shape[1] :].tolist()).strip().partition("\n")[0]
        shares = [f"{name} {n / counted.total():.0%}" for name, n in counted.most_common(3)]
        print(f"\n{prompt} {answer}\n  first choices: {', '.join(shares)}")


if __name__ == "__main__":
    main()
