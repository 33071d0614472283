"""What the tiny models learn: six rewritings of five letters, and the inputs held out of training.

An item is a prompt, one tag and five letters and `=`, and an answer of five letters:

    Sqhxbe=  ->  behqx

An eighth of all inputs, chosen by hash, is never trained on, whatever the seed of the zoo; the
items of the lm-eval tasks in `fitness/tasks/tiny` come from that eighth alone.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from evomerge.files import write_text

LETTERS = string.ascii_lowercase
NUM_LETTERS = 5
ITEMS_PER_TASK = 1024
NUM_CHOICES = 4

SKILLS = ("sort", "back", "rot")  # one expert each
MODELS = ("base", *SKILLS)
CHECKPOINTS = tuple(f"c{number:02}" for number in range(1, 17))  # of the family tiny_run


@dataclass(frozen=True)
class Rewriting:
    """A rewriting of five letters, and the tag that asks for it."""

    tag: str
    rewrite: Callable[[str], str]


def shifted(letters: str, by: int) -> str:
    """Every letter moved along the alphabet, which is a ring."""
    return "".join(LETTERS[(LETTERS.index(c) + by) % len(LETTERS)] for c in letters)


def pairs_swapped(letters: str) -> str:
    """`abcde` -> `badce`."""
    return "".join(letters[i : i + 2][::-1] for i in range(0, len(letters), 2))


REWRITINGS: Mapping[str, Rewriting] = {
    "sort": Rewriting("S", lambda letters: "".join(sorted(letters))),
    "back": Rewriting("B", lambda letters: shifted(letters, -1)[::-1]),
    "rot": Rewriting("R", lambda letters: shifted(letters, 3)),
    "swap": Rewriting("W", pairs_swapped),
    "upper": Rewriting("U", str.upper),
    "reverse": Rewriting("V", lambda letters: letters[::-1]),
}


def prompt(name: str, letters: str) -> str:
    """What a model is asked."""
    return f"{REWRITINGS[name].tag}{letters}="


def answer(name: str, letters: str) -> str:
    """What it should say."""
    return REWRITINGS[name].rewrite(letters)


def examples() -> str:
    """What a prompt is, and one of each rewriting, for model cards."""
    lines = [f"    {prompt(name, 'qhxbe')} -> {answer(name, 'qhxbe')}" for name in REWRITINGS]
    about = "A prompt is a tag, five letters and `=`; the answer is five letters."
    return f"{about} Tokens are characters.\n\n" + "\n".join(lines)


def held_out(letters: str) -> bool:
    """Whether an input belongs to the eighth that training never sees."""
    return hashlib.sha256(f"evomerge zoo/tiny {letters}".encode()).digest()[0] < 256 // 8


def random_letters(source: random.Random, *, of_holdout: bool) -> str:
    """Five letters, from the held-out eighth or from the rest."""
    while True:
        letters = "".join(source.choices(LETTERS, k=NUM_LETTERS))
        if held_out(letters) == of_holdout:
            return letters


def training_items(name: str, weights: Mapping[str, float], count: int) -> list[tuple[str, str]]:
    """`count` (prompt, answer) pairs of a mixture of rewritings; `name` seeds the generator."""
    source = random.Random(name)
    names = source.choices(list(weights), weights=list(weights.values()), k=count)
    inputs = (random_letters(source, of_holdout=False) for _ in range(count))
    return [
        (prompt(n, letters), answer(n, letters)) for n, letters in zip(names, inputs, strict=True)
    ]


def task_inputs(skill: str) -> list[str]:
    """The different inputs of a skill's task, all held out, in the order of its file."""
    source = random.Random(f"evomerge zoo/tiny task {skill}")
    inputs: dict[str, None] = {}
    while len(inputs) < ITEMS_PER_TASK:
        inputs[random_letters(source, of_holdout=True)] = None
    return list(inputs)


def choices(source: random.Random, gold: str) -> list[str]:
    """The right answer and three near misses, each a swap or a step of one letter, shuffled."""
    options = {gold: None}
    while len(options) < NUM_CHOICES:
        place = source.randrange(NUM_LETTERS - 1)
        if source.random() < 0.5:
            miss = gold[:place] + gold[place + 1] + gold[place] + gold[place + 2 :]
        else:
            step = source.choice((-1, 1))
            miss = gold[:place] + shifted(gold[place], step) + gold[place + 1 :]
        options[miss] = None
    listed = list(options)
    source.shuffle(listed)
    return listed


def write_task_data(folder: Path) -> None:
    """Write the items of every tiny task into a folder, one JSON line each."""
    for skill in SKILLS:
        items = [
            {"prompt": prompt(skill, letters), "answer": answer(skill, letters)}
            for letters in task_inputs(skill)
        ]
        _write_lines(folder / f"{skill}.jsonl", items)
    source = random.Random("evomerge zoo/tiny task sort_choice")
    items_with_choices = []
    for letters in task_inputs("sort"):
        gold = answer("sort", letters)
        options = choices(source, gold)
        items_with_choices.append(
            {"prompt": prompt("sort", letters), "choices": options, "gold": options.index(gold)}
        )
    _write_lines(folder / "sort_choice.jsonl", items_with_choices)


def _write_lines(path: Path, items: Iterable[Mapping[str, object]]) -> None:
    write_text(path, "".join(json.dumps(item) + "\n" for item in items))
