"""Learn which predictions to trust: accept them, escalate them, or abstain."""

import numpy as np

from crossroads.core.calibration import SdmSettings
from crossroads.prompts.embedded import load_embedded
from crossroads.prompts.verification import Verifier


def main() -> None:
    table = load_embedded("served")  # MMLU-Pro: embeddings and categories ship with the package
    x, category = table.embeddings["static"], table.domain
    rows = np.flatnonzero(np.isin(category, ["math", "law"]))
    np.random.default_rng(0).shuffle(rows)
    fit, fresh = rows[:1600], rows[1600:]

    is_law = category == "law"
    verifier = Verifier.fit(x[fit], is_law[fit], settings=SdmSettings(restarts=1))
    print(f"level {verifier.level:g}: needs a similarity of {verifier.least_similarity:.0f}")

    noise = np.random.default_rng(1).normal(size=(300, x.shape[1])) / np.sqrt(x.shape[1])
    asked = {
        "mathematics and law, fresh": x[fresh],
        "history": x[category == "history"],
        "noise": noise,
    }
    for name, vectors in asked.items():
        answers = [v.answer for v in verifier.verify(vectors, num_exemplars=0)]
        shares = {a: answers.count(a) / len(answers) for a in ("accept", "escalate", "abstain")}
        print(f"{name:28}", ", ".join(f"{a} {100 * s:.0f} %" for a, s in shares.items()))

    judged = verifier.verify(x[fresh], num_exemplars=0)
    right = [v.prediction == is_law[n] for v, n in zip(judged, fresh, strict=True)]
    accepted = [r for r, v in zip(right, judged, strict=True) if v.accepted]
    print(f"right: {np.mean(right):.3f} of all, {np.mean(accepted):.3f} of the accepted")


if __name__ == "__main__":
    main()
