"""Say in plain language which model should answer what, and swap a model without refitting."""

from crossroads.prompts.preferences.policies import Preferences
from crossroads.prompts.preferences.router import PreferenceRouter

PREFERENCES = {
    "default": "small",
    "policies": [
        {
            "name": "programming",
            "description": "programming questions, errors in code and functions",
            "model": "coder",
            "examples": ["Why does my loop never end?"],
        },
        {"name": "travel", "description": "flights, hotels, trips and places", "model": "guide"},
    ],
}
CHATS = (
    ["Why does my Python function raise an index error?"],
    ["Why does my Python function raise an index error?", "Which hotels are near the airport?"],
    ["Which hotels are near the airport?", "Thanks, that is all!"],
)


def main() -> None:
    router = PreferenceRouter(Preferences.parse(PREFERENCES))
    for texts in CHATS:
        decision = router.decide([{"role": "user", "content": text} for text in texts])
        print(f"{texts[-1]:52} -> {decision.model:6} {decision.reason}")
    router.preferences = router.preferences.remapped({"programming": "better-coder"})
    print("swapped:", router.decide([{"role": "user", "content": CHATS[0][0]}]).model)


if __name__ == "__main__":
    main()
