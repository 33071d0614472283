import collections
import filecmp
import json
import random
import string
from pathlib import Path

import pytest

from evomerge.files import catalogue_folder
from evomerge.zoo import tiny_items
from evomerge.zoo.tiny_items import (
    ITEMS_PER_TASK,
    REWRITINGS,
    SKILLS,
    answer,
    choices,
    held_out,
    prompt,
    task_inputs,
    training_items,
)

TASKS = catalogue_folder("fitness") / "tasks" / "tiny"
EVERYTHING = dict.fromkeys(REWRITINGS, 1.0)


def test_rewritings_by_hand():
    """Worked out on paper, with a letter that wraps around at either end."""
    written = {name: (prompt(name, "zbyab"), answer(name, "zbyab")) for name in REWRITINGS}
    assert written == {
        "sort": ("Szbyab=", "abbyz"),
        "back": ("Bzbyab=", "azxay"),
        "rot": ("Rzbyab=", "cebde"),
        "swap": ("Wzbyab=", "bzayb"),
        "upper": ("Uzbyab=", "ZBYAB"),
        "reverse": ("Vzbyab=", "bayb" + "z"),
    }


def test_rewritings_agree_with_tables():
    """`str.translate` is the oracle of the two shifts."""
    letters = string.ascii_lowercase
    three_on = str.maketrans(letters, letters[3:] + letters[:3])
    one_back = str.maketrans(letters, letters[-1] + letters[:-1])
    source = random.Random(1)
    for _ in range(200):
        word = "".join(source.choices(letters, k=5))
        assert answer("rot", word) == word.translate(three_on)
        assert answer("back", word) == word.translate(one_back)[::-1]


def test_tags_differ():
    assert len({rewriting.tag for rewriting in REWRITINGS.values()}) == len(REWRITINGS)


def test_an_eighth_is_held_out():
    source = random.Random(2)
    words = {"".join(source.choices(string.ascii_lowercase, k=5)) for _ in range(20_000)}
    part = sum(map(held_out, words)) / len(words)
    assert part == pytest.approx(1 / 8, abs=0.01)  # four standard errors


def test_training_never_sees_an_item_of_a_task():
    trained = training_items("any", EVERYTHING, 5_000)
    asked = {line["prompt"] for path in TASKS.glob("*.jsonl") for line in lines(path)}
    # Not by luck: every input asked for is in the eighth, and no input trained on is.
    assert all(held_out(text[1:6]) for text in asked)
    assert not any(held_out(text[1:6]) for text, _ in trained)


def test_training_items_follow_their_weights_and_their_name():
    items = training_items("one", {"sort": 3.0, "rot": 1.0}, 4_000)
    tags = collections.Counter(text[0] for text, _ in items)
    assert set(tags) == {"S", "R"}
    assert tags["S"] / 4_000 == pytest.approx(0.75, abs=0.03)
    assert items == training_items("one", {"sort": 3.0, "rot": 1.0}, 4_000)
    assert items != training_items("two", {"sort": 3.0, "rot": 1.0}, 4_000)


def test_committed_task_data_is_what_is_generated(tmp_path):
    tiny_items.write_task_data(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(path.name for path in TASKS.glob("*.jsonl"))
    _, different, missing = filecmp.cmpfiles(tmp_path, TASKS, names, shallow=False)
    assert (different, missing) == ([], [])


@pytest.mark.parametrize("skill", SKILLS)
def test_task_items_are_distinct_and_right(skill):
    items = lines(TASKS / f"{skill}.jsonl")
    assert len({item["prompt"] for item in items}) == ITEMS_PER_TASK == len(task_inputs(skill))
    assert all(item["answer"] == answer(skill, item["prompt"][1:6]) for item in items)


def test_choices_are_four_different_ones_with_the_answer_anywhere():
    items = lines(TASKS / "sort_choice.jsonl")
    for item in items:
        assert len(set(item["choices"])) == 4
        assert item["choices"][item["gold"]] == answer("sort", item["prompt"][1:6])
    places = collections.Counter(item["gold"] for item in items)
    assert min(places.values()) > 200  # 256 expected


@pytest.mark.parametrize("gold", ["aaaaa", "abcde", "zzzza"])
def test_distractors_are_near_misses(gold):
    for miss in set(choices(random.Random(3), gold)) - {gold}:
        changed = [place for place in range(5) if miss[place] != gold[place]]
        assert len(changed) == 1 or sorted(miss) == sorted(gold)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
