"""Packed questions against transformers, one plain sequence for each choice."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.zoo.smollm2.packing import (
    EncodedQuestion,
    batches_by_length,
    choice_log_likelihoods,
    pack,
)


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,  # large, so that a wrong mask or position shows
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LlamaForCausalLM(config).eval()


def questions(count, seed):
    source = random.Random(seed)

    def tokens(low, high):
        return [source.randrange(50) for _ in range(source.randint(low, high))]

    return [
        EncodedQuestion(
            tokens(1, 9), tuple(tokens(1, 5) for _ in range(source.randint(2, 5))), gold=0
        )
        for _ in range(count)
    ]


def plain(model, question):
    sums = []
    for choice in question.choices:
        ids = torch.tensor([[*question.context, *choice]])
        log_probabilities = model(ids).logits[0].log_softmax(-1)
        places = range(len(question.context) - 1, ids.shape[1] - 1)
        sums.append(sum(log_probabilities[at, ids[0, at + 1]] for at in places))
    return torch.stack(sums)


@pytest.mark.parametrize("seed", range(4))
def test_log_likelihoods_are_those_of_plain_sequences(model, seed):
    asked = questions(7, seed)
    with torch.inference_mode():
        found = choice_log_likelihoods(model, pack(asked))
        for row, question in zip(found, asked, strict=True):
            expected = plain(model, question)
            torch.testing.assert_close(row[: len(expected)], expected, atol=1e-4, rtol=1e-5)
            assert torch.isneginf(row[len(expected) :]).all()


def test_gradients_are_those_of_plain_sequences(model):
    asked = questions(5, 9)
    weight = model.model.layers[1].mlp.up_proj.weight

    def gradient(value):
        model.zero_grad()
        value.backward()
        return weight.grad.clone()

    sums = choice_log_likelihoods(model, pack(asked))
    packed = gradient(sums.masked_fill(torch.isneginf(sums), 0).sum())
    one_by_one = gradient(sum(plain(model, question).sum() for question in asked))
    torch.testing.assert_close(packed, one_by_one, atol=1e-4, rtol=1e-4)


def test_the_last_token_of_a_choice_is_not_read():
    question = EncodedQuestion([1, 2, 3], ([4], [5, 6, 7]), gold=1)
    batch = pack([question])
    assert question.num_read == 5
    assert batch.input_ids.tolist() == [[1, 2, 3, 5, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.gold_lengths.tolist() == [3]


@pytest.mark.parametrize(("count", "size", "window"), [(100, 8, 4), (97, 16, 3), (5, 8, 8)])
def test_batches_hold_every_question_once_and_pad_less(count, size, window):
    asked = questions(count, 3)
    batches = list(batches_by_length(asked, size, window))
    assert sorted(place for batch in batches for place in batch) == list(range(count))
    assert len(batches) == -(-count // size)
    for number, batch in enumerate(batches):  # those of other windows do not mix
        start = number // window * window * size
        assert all(start <= place < start + window * size for place in batch)

    def padded(batches):
        return sum(len(b) * max(asked[place].num_read for place in b) for b in batches)

    plain_batches = [range(i, min(i + size, count)) for i in range(0, count, size)]
    assert padded(batches) <= padded(plain_batches)
