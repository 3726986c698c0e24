"""The tasks of the collection: twelve with an expert each, and eight that no expert was trained on.

Frames are what stands around a question. Four tasks share ``Q: .. / A: ..`` with the four held-out
ones of BIG-Bench Hard, so that a frame does not give away the task; CLINC's two share another. The
held-out intents of CLINC are one in five of each domain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

from crossroads.adapters.collection.rows import (
    TEST_SHARE,
    Row,
    Split,
    divided,
    fingerprint,
    pick,
    published,
)
from crossroads.core.errors import unknown_name
from crossroads.datasets import (
    bbh,
    char_text,
    clinc150,
    gsm8k,
    medqa_fr,
    pubmedqa,
    python_source,
    tatoeba,
)
from crossroads.datasets.paths import data_folder

QUESTION = "Q: {}\nA:"
INTENT = "Query: {}\nIntent:"
FINDING = "Finding: {}\nQuestion: {}\nAnswer:"
TRANSLATION = "{}: {}\nEnglish:"
PLAIN = "plain text"

LANGUAGES = {
    "deu": "German", "fra": "French", "spa": "Spanish",
    "nld": "Dutch", "por": "Portuguese", "ita": "Italian",
}  # fmt: skip
LOGIC = ("boolean_expressions", "navigate", "web_of_lies")
DEDUCTION = (
    "logical_deduction_three_objects",
    "logical_deduction_five_objects",
    "logical_deduction_seven_objects",
    "tracking_shuffled_objects_three_objects",
    "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects",
)
UNSEEN_BBH = ("date_understanding", "sports_understanding", "hyperbaton", "snarks")

_TRAINED = ("deu", "fra", "spa")
_TEST_OF_PAIRS = 0.1  # 900 pairs to learn from
_TEST_OF_UNSEEN = 0.75  # nobody learns a task that was kept aside but few-shot methods
_MOST = 4_000  # rows a side
_OPTIONS = 5  # intents a request is scored against
_SENTENCES = 4  # translations a sentence is scored against
_CONCLUSION = 240  # characters of an abstract's conclusion that are shown
_BLOCK, _OPENING = 360, 90  # characters of a piece of plain text, and of its part that is a prompt

Rows = Mapping[Split, tuple[Row, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A task of the collection.

    Attributes
    ----------
    name : of the task, and of its expert where it has one
    frame : what stands around its questions; tasks of one frame cannot be told apart by it
    about : one line in words
    rows : by split
    held_in : an expert was trained on its training rows
    length : tokens of prompt and answer together; longer rows are left out of training and tests
    batch : rows of a training batch; ``length`` times it is about 512 tokens
    """

    name: str
    frame: str
    about: str
    rows: Rows
    held_in: bool
    length: int
    batch: int

    @property
    def has_options(self) -> bool:
        return any(row.options is not None for row in self.rows["test"][:1])

    def fingerprint(self, split: Split) -> str:
        """Return a hash of the rows of a split."""
        return fingerprint(self.rows[split])


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    about: str
    frame: str
    make: Callable[[], Rows]
    length: int
    batch: int
    held_in: bool = True


def task_names(*, held_in: bool | None = None) -> list[str]:
    """Return the names of all tasks, of those with an expert, or of those without."""
    return [name for name, plan in _PLANS.items() if held_in in (None, plan.held_in)]


@cache
def get_task(name: str) -> Task:
    """Return a task with its rows.

    Raises UsageError with the nearest spelling, UnavailableError where its data are absent.
    """
    if name not in _PLANS:
        raise unknown_name("task", name, _PLANS)
    plan = _PLANS[name]
    return Task(
        name=name,
        frame=plan.frame,
        about=plan.about,
        rows=plan.make(),
        held_in=plan.held_in,
        length=plan.length,
        batch=plan.batch,
    )


def tasks(*, held_in: bool | None = None) -> list[Task]:
    """Return tasks with their rows; see ``task_names``."""
    return [get_task(name) for name in task_names(held_in=held_in)]


def unseen_intents(intents: Iterable[str]) -> set[str]:
    """Return the one in five that is kept aside, by hash of the name."""
    names = sorted(intents)
    return set(pick(names, len(names) // 5, "kept aside"))


@cache
def _requests() -> clinc150.Requests:
    return clinc150.load_requests()


def _intents(half: int, *, unseen: bool) -> Rows:
    of_domain = dict(list(clinc150.load_domains().items())[5 * half : 5 * half + 5])
    aside = {i for intents in of_domain.values() for i in unseen_intents(intents)}

    def row(request: clinc150.Request) -> Row:
        others = [i for i in of_domain[request.domain] if i != request.intent]
        if not unseen:
            others = [i for i in others if i not in aside]
        names = _among(others, request.intent, _OPTIONS, request.text)
        return Row(
            prompt=INTENT.format(request.text),
            answer=_words(request.intent),
            options=tuple(_words(name) for name in names),
        )

    def rows(part: Sequence[clinc150.Request]) -> list[Row]:
        mine = [r for r in part if r.domain in of_domain and (r.intent in aside) is unseen]
        return [row(request) for request in mine]

    parts = _requests()
    return published(rows(parts.train), rows(parts.valid), rows(parts.test), most=_MOST)


def _among(others: Sequence[str], right: str, count: int, text: str) -> list[str]:
    """Return the right answer at a drawn place among ``count - 1`` drawn others."""
    return pick([*pick(others, count - 1, text), right], count, f"{text}\norder")


def _words(intent: str) -> str:
    return " " + intent.replace("_", " ")


@cache
def _pairs() -> tuple[tatoeba.Pair, ...]:
    return tuple(tatoeba.load(languages=list(LANGUAGES)))


def _translations(language: str) -> Rows:
    pairs = [pair for pair in _pairs() if pair.language == language]
    test = _TEST_OF_PAIRS
    if language not in _TRAINED:
        trained = {pair.english for pair in _pairs() if pair.language in _TRAINED}
        pairs = [pair for pair in pairs if pair.english not in trained]
        test = _TEST_OF_UNSEEN
    english = sorted({pair.english for pair in pairs})

    def row(pair: tatoeba.Pair) -> Row:
        others = [text for text in english if text != pair.english]
        texts = pick(
            [*pick(others, _SENTENCES - 1, pair.text), pair.english], _SENTENCES, pair.text
        )
        return Row(
            prompt=TRANSLATION.format(LANGUAGES[language], pair.text),
            answer=f" {pair.english}",
            options=tuple(f" {text}" for text in texts),
        )

    return divided(((pair.english, row(pair)) for pair in pairs), test=test, most=_MOST)


def _bbh(names: Sequence[str], *, test: float = TEST_SHARE) -> Rows:
    def row(question: bbh.Question) -> Row:
        return Row(
            prompt=QUESTION.format(question.text),
            answer=f" {question.answer}",
            options=tuple(f" {choice}" for choice in question.choices),
        )

    return divided(((q.text, row(q)) for q in bbh.load(tasks=names)), test=test, most=_MOST)


def _problems() -> Rows:
    def rows(part: Sequence[gsm8k.Problem]) -> list[Row]:
        return [Row(prompt=QUESTION.format(p.question), answer=f" {p.answer}") for p in part]

    problems = gsm8k.load()
    return published(rows(problems.train), [], rows(problems.test), most=_MOST)


def _studies() -> Rows:
    def rows(part: Sequence[pubmedqa.Study]) -> list[Row]:
        return [
            Row(
                prompt=FINDING.format(study.conclusion[:_CONCLUSION], study.question),
                answer=f" {study.decision}",
                options=tuple(f" {decision}" for decision in pubmedqa.DECISIONS),
            )
            for study in part
        ]

    studies = pubmedqa.load()
    return published(rows(studies.train), [], rows(studies.test), most=_MOST)


def _exam() -> Rows:
    def rows(part: Sequence[medqa_fr.ExamQuestion]) -> list[Row]:
        return [
            Row(
                prompt=QUESTION.format(question.question),
                answer=f" {question.choices[question.right[0]]}",
                options=tuple(f" {choice}" for choice in question.choices),
            )
            for question in part
            if len(question.right) == 1
        ]

    exam = medqa_fr.load()
    return published(rows(exam.train), rows(exam.valid), rows(exam.test), most=_MOST)


def _shakespeare() -> Rows:
    text = char_text.load_shakespeare(data_folder("tinyshakespeare"))
    whole = bytes(text.train).decode() + bytes(text.valid).decode()
    return divided(((row.prompt + row.answer, row) for row in _blocks(whole)), most=_MOST)


def _source() -> Rows:
    """Divide by file, so that the two halves of a class never lie on two sides."""
    files = python_source.load().files
    return divided(
        ((name, row) for name, text in files.items() for row in _blocks(text)), most=_MOST
    )


def _blocks(text: str) -> Iterator[Row]:
    """Cut a text at line ends into pieces of about ``_BLOCK`` characters."""
    lines: list[str] = []
    for line in text.splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) < _BLOCK:
            continue
        opening = 1
        while sum(map(len, lines[:opening])) < _OPENING:
            opening += 1
        prompt, answer = "".join(lines[:opening]), "".join(lines[opening:])
        if answer.strip():
            yield Row(prompt=prompt, answer=answer)
        lines = []


_PLANS: dict[str, _Plan] = {
    "clinc-a": _Plan(
        about="intents of requests about banking, credit cards, kitchen, home, car",
        frame=INTENT, make=partial(_intents, 0, unseen=False), length=24, batch=20,
    ),
    "clinc-b": _Plan(
        about="intents of requests about travel, utility, work, small talk, the assistant",
        frame=INTENT, make=partial(_intents, 1, unseen=False), length=24, batch=20,
    ),
    "tatoeba-deu": _Plan(
        about="German sentences to English",
        frame=TRANSLATION, make=partial(_translations, "deu"), length=44, batch=12,
    ),
    "tatoeba-fra": _Plan(
        about="French sentences to English",
        frame=TRANSLATION, make=partial(_translations, "fra"), length=44, batch=12,
    ),
    "tatoeba-spa": _Plan(
        about="Spanish sentences to English",
        frame=TRANSLATION, make=partial(_translations, "spa"), length=44, batch=12,
    ),
    "gsm8k": _Plan(
        about="word problems of primary school, with their steps",
        frame=QUESTION, make=_problems, length=160, batch=3,
    ),
    "pubmedqa": _Plan(
        about="yes, no or maybe to a biomedical question, given a finding",
        frame=FINDING, make=_studies, length=112, batch=5,
    ),
    "medqa-fr": _Plan(
        about="exam questions of French pharmacy",
        frame=QUESTION, make=_exam, length=84, batch=6,
    ),
    "bbh-logic": _Plan(
        about="truth values, liars, and whether a walk returns",
        frame=QUESTION, make=partial(_bbh, LOGIC), length=72, batch=7,
    ),
    "bbh-deduction": _Plan(
        about="orders of objects and who holds what after swaps",
        frame=QUESTION, make=partial(_bbh, DEDUCTION), length=240, batch=2,
    ),
    "shakespeare": _Plan(
        about="plays, continued", frame=PLAIN, make=_shakespeare, length=128, batch=4,
    ),
    "python": _Plan(
        about="source of Python's standard library, continued",
        frame=PLAIN, make=_source, length=128, batch=4,
    ),
    **{
        f"tatoeba-{code}": _Plan(
            about=f"{LANGUAGES[code]} sentences to English", frame=TRANSLATION,
            make=partial(_translations, code), length=44, batch=12, held_in=False,
        )
        for code in ("nld", "por", "ita")
    },
    **{
        f"bbh-{name.replace('_', '-')}": _Plan(
            about=f"BIG-Bench Hard: {name.replace('_', ' ')}", frame=QUESTION,
            make=partial(_bbh, (name,), test=_TEST_OF_UNSEEN),
            length=160, batch=3, held_in=False,
        )
        for name in UNSEEN_BBH
    },
    **{
        f"clinc-{half}-unseen": _Plan(
            about=f"requests of the domains of clinc-{half} with intents that were kept aside",
            frame=INTENT, make=partial(_intents, n, unseen=True),
            length=24, batch=20, held_in=False,
        )
        for n, half in enumerate("ab")
    },
}  # fmt: skip
