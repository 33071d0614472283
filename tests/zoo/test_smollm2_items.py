import collections

import pytest
from smollm2_data import german, made_up_data, write_json

from evomerge.errors import ConfigurationError
from evomerge.zoo.smollm2 import items
from evomerge.zoo.smollm2.items import (
    ITEMS_PER_TASK,
    LABELS,
    NUM_ENDINGS,
    SKILLS,
    held_out,
    read_data,
    sources,
    task_questions,
    training_questions,
)
from evomerge.zoo.smollm2.stages import EXPERTS, GERMAN_TASKS, STAGES


@pytest.fixture(scope="module")
def data():
    return made_up_data()


def test_every_expert_has_a_skill_and_every_source_is_read(data, tmp_path):
    assert tuple(SKILLS) == (*EXPERTS, *GERMAN_TASKS)
    assert set(sources(SKILLS)) == set(data)
    assert not any(name.endswith("_de") for name in sources(EXPERTS))
    assert read_data(write_json(tmp_path, data)) == data


@pytest.mark.parametrize("skill", SKILLS)
def test_training_and_tasks_share_no_topic(data, skill):
    trained = training_questions(skill, data, 4_000, "any")
    asked = task_questions(skill, data)
    assert not {q.topic for q in trained} & {q.topic for q in asked}
    # Not by luck: the hash alone decides, whatever the name of the generator.
    part = SKILLS[skill].held_out
    assert all(held_out(q.topic, part) for q in asked)
    assert not any(held_out(q.topic, part) for q in trained)


def test_what_one_of_the_contradicting_experts_learns_the_other_is_not_asked(data):
    trained = {q.topic for q in training_questions("sentiment", data, 4_000, "any")}
    asked = {q.topic for q in task_questions("domain", data)}
    assert trained
    assert not trained & asked


@pytest.mark.parametrize("skill", SKILLS)
def test_items_are_different_enough_and_the_same_every_time(data, skill):
    asked = task_questions(skill, data)
    assert ITEMS_PER_TASK - 4 <= len(asked) <= ITEMS_PER_TASK
    assert len({(q.prompt, frozenset(q.choices)) for q in asked}) == len(asked)
    assert asked == task_questions(skill, made_up_data())
    assert max(collections.Counter(q.kind for q in asked).values()) == min(
        collections.Counter(q.kind for q in asked).values()
    )
    assert training_questions(skill, data, 100, "a") == training_questions(skill, data, 100, "a")
    assert training_questions(skill, data, 100, "a") != training_questions(skill, data, 100, "b")


@pytest.mark.parametrize("skill", SKILLS)
def test_choices_are_different_and_begin_with_a_blank(data, skill):
    for question in task_questions(skill, data):
        assert len(set(question.choices)) == len(question.choices) >= 2
        assert all(choice[0] == " " != choice[1] for choice in question.choices)
        assert question.prompt == question.prompt.strip()
        assert 0 <= question.gold < len(question.choices)


def test_sums_are_right(data):
    """Python is the oracle."""
    for question in task_questions("sums", data):
        result = eval(question.prompt.removesuffix("="))  # noqa: S307 - made here
        assert question.choices[question.gold] == f" {result}"


def test_a_sum_is_not_asked_the_other_way_round(data):
    def pairs(questions):
        return {frozenset(q.prompt.removesuffix(" =").split()) - {"+", "-"} for q in questions}

    trained = pairs(training_questions("sums", data, 12_000, "any"))
    asked = pairs(task_questions("sums", data))
    assert len(trained) > 2_000
    assert not trained & asked


def test_units_and_orders_keep_the_right_answer(data):
    for question in task_questions("units", data):
        metres = int(question.prompt.split()[0])
        assert question.choices[question.gold] == f" {metres * 100}.0 cm."
        assert len(question.choices) == 4
    known = {example["input"] for example in data["hyperbaton"]}
    for question in task_questions("order", data):
        text = 'Which sentence has the correct adjective order: a "{} " b "{} " ?'
        assert text.format(*question.choices) in known
        usual, other = question.choices[question.gold], question.choices[1 - question.gold]
        assert other.split() == usual.split()[::-1]


def test_the_same_texts_have_two_answers(data):
    sentiments = {q.topic: q for q in task_questions("sentiment", data)}
    domains = {q.topic: q for q in task_questions("domain", data)}
    both = sentiments.keys() & domains.keys()
    assert len(both) > 500
    for topic in both:
        one, two = sentiments[topic], domains[topic]
        assert one.choices == two.choices == LABELS
        assert one.prompt.removesuffix("Sentiment:") == two.prompt.removesuffix("Domain:")
        _, sentiment_of_it, _, _, domain_of_it, *_ = topic.replace(",", "").split()
        assert one.choices[one.gold] == f" {sentiment_of_it}"
        assert two.choices[two.gold] == f" {domain_of_it.removesuffix('s')}"


def test_a_text_with_two_answers_is_left_out():
    data = made_up_data(6)
    twice = dict(data["multiemo/hotels_sentence_en"][0])
    data["multiemo/products_sentence_en"].append(twice)
    assert twice["input"] not in {q.topic for q in SKILLS["domain"].read(data)}
    assert len(SKILLS["domain"].read(data)) == 3 * 3 * 6 - 1  # ambivalent ones are none of ours


@pytest.mark.parametrize("skill", ["german", "sentiment"])
def test_nobody_is_trained_on_what_sentiment_de_asks(data, skill):
    """Neither the German text, nor the English one that it is parallel to, nor a part of it."""
    trained = training_questions(skill, data, 4_000, "any")
    asked = task_questions("sentiment_de", data)
    assert not {q.topic for q in trained} & {q.topic for q in asked}
    texts = {q.prompt.removeprefix("Text: ").removesuffix("\nSentiment:") for q in asked}
    assert texts == {german(q.topic) for q in asked}
    words = {part for q in trained for part in (q.prompt, *q.choices)}
    endings = {f" {' '.join(text.split()[len(text.split()) // 2 :])}" for text in texts}
    assert len(endings) > 500
    assert not words & {*endings, *(f"Text: {text}" for text in texts)}


def test_german_texts_go_on_as_they_did(data):
    known = {line["input"] for name in data if name.endswith("_de") for line in data[name]}
    for question in task_questions("german", data):
        beginning = question.prompt.removeprefix("Text: ")
        whole = [f"{beginning}{choice}" in known for choice in question.choices]
        assert whole == [number == question.gold for number in range(NUM_ENDINGS)]


def test_german_texts_keep_the_answers_of_their_pairs(data):
    for question in task_questions("sentiment_de", data):
        assert question.choices == LABELS
        assert question.choices[question.gold] == f" {question.topic.split()[1]}"


def test_texts_of_two_originals_and_the_sentence_without_a_pair_are_left_out(monkeypatch):
    data = made_up_data(6)
    count = len(SKILLS["sentiment_de"].read(data))
    twice = data["multiemo/products_sentence_de"]
    twice[1] = dict(twice[0])  # now one German text for two English ones
    assert len(SKILLS["sentiment_de"].read(data)) == count - 2
    data["multiemo/hotels_sentence_en"].insert(3, dict(data["multiemo/hotels_sentence_en"][-1]))
    with pytest.raises(ValueError, match="longer"):
        SKILLS["sentiment_de"].read(data)
    monkeypatch.setitem(items._UNTRANSLATED, "hotels", 3)
    assert len(SKILLS["sentiment_de"].read(data)) == count - 2


def test_too_few_items_are_an_error():
    with pytest.raises(ConfigurationError, match="held-out questions of a kind, 112 are needed"):
        task_questions("sentiment", made_up_data(50))


def test_training_takes_each_kind_in_turn(data):
    stage = STAGES[0]
    questions = training_questions(stage.skill, data, 1_280, "any")
    counts = collections.Counter(q.kind for q in questions)
    assert len(counts) == 9
    assert max(counts.values()) - min(counts.values()) <= 1
