"""What the SmolLM2 experts learn: questions with choices, and which of them training never sees.

Five skills of the family `smollm2`. `sentiment` and `domain` ask about the same texts with the same
six choices, and only the cue before the answer differs: who is trained for one answers it to the
other as well. That is the conflict that a search may settle. Two more of `smollm2_german`: how
German texts go on, which says nothing of their sentiment, and `sentiment_de`, which nobody is
trained for.

Which questions are held out is decided by a hash of what they are about, whatever the seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import ConfigurationError, Problem

ITEMS_PER_TASK = 1008  # more than a thousand, and a multiple of the nine kinds of texts
SENTIMENTS = ("positive", "negative", "neutral")
DOMAINS = {"hotels": "hotel", "medicine": "medicine", "products": "product"}  # file -> label
LABELS = tuple(f" {label}" for label in (*SENTIMENTS, *DOMAINS.values()))
TEXT_CHARACTERS = range(15, 91)
ORDER_WORDS = range(4, 8)
NUM_UNIT_CHOICES = 4  # of the five that there are
GERMAN_CHARACTERS = range(20, 71)
GERMAN_WORDS = 6  # at least: there is something before the cut, and behind it
NUM_ENDINGS = 3
_UNTRANSLATED = {"hotels": 22362}  # the one English sentence that has no German one

Data = Mapping[str, Sequence[Mapping[str, object]]]  # BIG-bench task -> its examples


@dataclass(frozen=True)
class Question:
    """A question with choices.

    choices: the possible continuations, each with the blank before it.
    gold: which of them is right.
    topic: what it is about; questions about the same are all held out, or none is.
    kind: tasks and trainings hold as many questions of each kind.
    """

    prompt: str
    choices: tuple[str, ...]
    gold: int
    topic: str
    kind: str = ""


@dataclass(frozen=True)
class Skill:
    """A skill: where its questions come from, and the part of them that is held out."""

    about: str
    held_out: float
    sources: tuple[str, ...]  # tasks of BIG-bench
    read: Callable[[Data], list[Question]]


def read_data(files: Mapping[str, Path]) -> Data:
    """The examples of every task of BIG-bench, from its JSON files."""
    return {name: json.loads(file.read_bytes())["examples"] for name, file in files.items()}


# --- the skills -----------------------------------------------------------------------------------


def _texts(data: Data, cue: str, *, by_sentiment: bool) -> list[Question]:
    seen: dict[str, set[str]] = defaultdict(set)
    labels: dict[str, tuple[str, str]] = {}
    for domain, label in DOMAINS.items():
        for example in data[f"multiemo/{domain}_sentence_en"]:
            text, sentiment = str(example["input"]).strip(), _right(example)
            if len(text) in TEXT_CHARACTERS:
                seen[text].add(sentiment + label)
                labels[text] = (sentiment, label)
    questions = []
    for text, (sentiment, domain) in labels.items():
        if len(seen[text]) == 1 and sentiment in SENTIMENTS:  # no text with two answers
            gold = LABELS.index(f" {sentiment if by_sentiment else domain}")
            prompt = f"Text: {text}\n{cue}:"
            questions.append(Question(prompt, LABELS, gold, text, f"{sentiment} {domain}"))
    return questions


def _sentiment(data: Data) -> list[Question]:
    return _texts(data, "Sentiment", by_sentiment=True)


def _domain(data: Data) -> list[Question]:
    return _texts(data, "Domain", by_sentiment=False)


def _sums(_: Data) -> list[Question]:
    """Sums and differences of numbers with two digits; the wrong answers are near misses."""
    questions = []
    for a in range(10, 100):
        for b in range(10, 100):
            topic = f"{min(a, b)} {max(a, b)}"
            questions.append(_sum(f"{a} + {b} =", a + b, topic, "sum"))
            if a > b:
                questions.append(_sum(f"{a} - {b} =", a - b, topic, "difference"))
    return questions


def _sum(prompt: str, result: int, topic: str, kind: str) -> Question:
    source = random.Random(f"evomerge zoo/smollm2 choices {prompt}")
    options = {result: None}
    while len(options) < 4:
        miss = result + source.choice((-20, -11, -10, -9, -2, -1, 1, 2, 9, 10, 11, 20))
        if miss >= 0:
            options[miss] = None
    listed = sorted(options)
    source.shuffle(listed)
    return Question(prompt, tuple(f" {n}" for n in listed), listed.index(result), topic, kind)


def _units(data: Data) -> list[Question]:
    questions = {}
    for example in data["unit_conversion/si_conversion"]:
        prompt = str(example["input"]).strip()
        right = _right(example)
        source = random.Random(f"evomerge zoo/smollm2 choices {prompt}")
        wrong = [answer for answer in _answers(example) if answer != right]
        answers = [right, *source.sample(wrong, NUM_UNIT_CHOICES - 1)]
        source.shuffle(answers)
        choices = tuple(f" {answer}" for answer in answers)
        questions[prompt] = Question(prompt, choices, answers.index(right), prompt)
    return list(questions.values())


def _order(data: Data) -> list[Question]:
    """Two orders of the same words; which is the usual one?"""
    questions = {}
    for example in data["hyperbaton"]:
        _, one, _, two, _ = str(example["input"]).split('"')
        if len(one.split()) not in ORDER_WORDS:
            continue
        choices = tuple(f" {' '.join(phrase.split())}" for phrase in (one, two))
        topic = " ".join(sorted(one.split()))
        kind = f"{len(one.split())} words"
        gold = "ab".index(_right(example))
        questions[topic] = Question("In the usual order: a", choices, gold, topic, kind)
    return list(questions.values())


@dataclass(frozen=True)
class _German:
    """A German text, the English one that it is parallel to, and both labels."""

    text: str
    english: str
    sentiment: str
    domain: str


def _german_texts(data: Data, characters: range) -> list[_German]:
    """German texts of some length that have one English text and one answer."""
    found: dict[str, set[_German]] = defaultdict(set)
    for domain, label in DOMAINS.items():
        lines = enumerate(data[f"multiemo/{domain}_sentence_en"])
        english = [line for number, line in lines if number != _UNTRANSLATED.get(domain)]
        for there, here in zip(data[f"multiemo/{domain}_sentence_de"], english, strict=True):
            text = str(there["input"]).strip()
            if len(text) in characters:
                line = _German(text, str(here["input"]).strip(), _right(there), label)
                found[text].add(line)
    return [line for lines in found.values() if len(lines) == 1 for line in lines]


def _sentiment_de(data: Data) -> list[Question]:
    """The question of `sentiment` about German texts; held out with the English ones."""
    return [
        Question(
            f"Text: {line.text}\nSentiment:",
            LABELS,
            LABELS.index(f" {line.sentiment}"),
            line.english,
            f"{line.sentiment} {line.domain}",
        )
        for line in _german_texts(data, TEXT_CHARACTERS)
        if line.sentiment in SENTIMENTS
    ]


def _german(data: Data) -> list[Question]:
    """How does a German text go on? The wrong endings are those of others of its domain.

    Texts that are held out and others keep to themselves, so that no ending is in both.
    """
    halves: dict[tuple[str, bool], list[tuple[str, str, str]]] = defaultdict(list)
    for line in _german_texts(data, GERMAN_CHARACTERS):
        words = line.text.split()
        if len(words) >= GERMAN_WORDS:
            cut = len(words) // 2
            side = held_out(line.english, SKILLS["german"].held_out)
            halves[line.domain, side].append(
                (" ".join(words[:cut]), " ".join(words[cut:]), line.english)
            )
    questions = []
    for (domain, _), texts in halves.items():
        endings = sorted({ending for _, ending, _ in texts})
        for beginning, ending, topic in texts:
            source = random.Random(f"evomerge zoo/smollm2 choices {beginning} {ending}")
            options = {ending: None}
            while len(options) < min(NUM_ENDINGS, len(endings)):
                options[source.choice(endings)] = None
            listed = sorted(options)
            source.shuffle(listed)
            choices = tuple(f" {option}" for option in listed)
            prompt = f"Text: {beginning}"
            questions.append(Question(prompt, choices, listed.index(ending), topic, domain))
    return questions


def _answers(example: Mapping[str, object]) -> dict[str, float]:
    scores = example["target_scores"]
    assert isinstance(scores, dict)  # noqa: S101 - the archive's checksum was compared
    return scores


def _right(example: Mapping[str, object]) -> str:
    scores = _answers(example)
    return max(scores, key=lambda answer: scores[answer])


_TEXTS = tuple(f"multiemo/{domain}_sentence_en" for domain in DOMAINS)
_PAIRS = (*_TEXTS, *(f"multiemo/{domain}_sentence_de" for domain in DOMAINS))
SKILLS: Mapping[str, Skill] = {
    "sentiment": Skill(
        "whether a review is positive, negative or neutral", 1 / 3, _TEXTS, _sentiment
    ),
    "domain": Skill("what a review is of: hotel, medicine or product", 1 / 3, _TEXTS, _domain),
    "sums": Skill("sums and differences of numbers with two digits", 1 / 3, (), _sums),
    "units": Skill("conversion of units", 0.4, ("unit_conversion/si_conversion",), _units),
    "order": Skill("the usual order of adjectives", 1 / 3, ("hyperbaton",), _order),
    "german": Skill("how German texts go on", 1 / 3, _PAIRS, _german),
    "sentiment_de": Skill("`sentiment` asked about German texts", 1 / 3, _PAIRS, _sentiment_de),
}


def sources(skills: Iterable[str]) -> tuple[str, ...]:
    """The tasks of BIG-bench that some skills' questions come from."""
    return tuple(dict.fromkeys(name for skill in skills for name in SKILLS[skill].sources))


# --- training and holdout -------------------------------------------------------------------------


def held_out(topic: str, part: float) -> bool:
    """Whether a topic belongs to the part that training never sees; the same for every skill."""
    return _rank(topic) < part


def _rank(text: str) -> float:
    digest = hashlib.sha256(f"evomerge zoo/smollm2 {text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def training_questions(skill: str, data: Data, count: int, name: str) -> list[Question]:
    """`count` questions that are not held out, each kind in turn; `name` seeds the order.

    What is rarer than its turns comes again.
    """
    source = random.Random(name)
    kinds = _by_kind(skill, data, of_holdout=False)
    for questions in kinds:
        source.shuffle(questions)
    rounds = range(-(-count // len(kinds)))
    chosen = [questions[i % len(questions)] for i in rounds for questions in kinds][:count]
    source.shuffle(chosen)
    return chosen


def task_questions(skill: str, data: Data) -> list[Question]:
    """The questions of a skill's task: all held out, different, as many of each kind.

    Raises:
        ConfigurationError: there are too few.
    """
    kinds = _by_kind(skill, data, of_holdout=True)
    each = ITEMS_PER_TASK // len(kinds)
    if min(map(len, kinds)) < each:
        what = f"{min(map(len, kinds))} held-out questions of a kind, {each} are needed"
        raise ConfigurationError(Problem(f"zoo:smollm2 {skill}", what))
    chosen = [q for questions in kinds for q in sorted(questions, key=_place)[:each]]
    return sorted(chosen, key=_place)


def _place(question: Question) -> float:
    return _rank(f"order {question.prompt} {question.choices}")


def _by_kind(skill: str, data: Data, *, of_holdout: bool) -> list[list[Question]]:
    kinds: dict[str, list[Question]] = defaultdict(list)
    for question in SKILLS[skill].read(data):
        if held_out(question.topic, SKILLS[skill].held_out) == of_holdout:
            kinds[question.kind].append(question)
    return [kinds[kind] for kind in sorted(kinds)]
