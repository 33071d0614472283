from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_models import added, word_level
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from evomerge.checkpoints.union_tokenizer import Tokenizer as Parsed
from evomerge.checkpoints.union_tokenizer import ids_of, union_of
from evomerge.errors import ModelError

UNKNOWN = {"unk_token": "<unk>"}
ENGLISH = ["the cat sat on the mat", "a cat and a hat", "that is the hat of the cat"] * 3
CODE = ["def hat(cat): return cat + hat", "return the(hat) # déjà vu", "def the(): pass"] * 3


def parsed(data: Any, name: str) -> Parsed:
    ids = ids_of(json.dumps(data), name)
    return Parsed(name, data, ids, ids)


def union(*datas: Any) -> dict[str, Any]:
    first, *others = (parsed(data, f"m{i}") for i, data in enumerate(datas))
    before = json.dumps(datas)
    made = union_of(first, others, "m0")
    assert json.dumps(datas) == before
    if made is None:
        return dict(datas[0])
    assert made.data == json.loads(made.text)
    assert made.ids == read(made.data).get_vocab()
    return dict(made.data)


def read(data: Any) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(data))


@cache
def trained(kind: str, corpus: tuple[str, ...], size: int) -> str:
    """A tokenizer of a real kind, trained on a few lines; its text."""
    special: dict[str, Any] = {"vocab_size": size, "special_tokens": ["<unk>", "<s>"]}
    special["show_progress"] = False
    if kind == "byte-level BPE":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        special["initial_alphabet"] = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(**special)
    elif kind == "BPE":
        made = Tokenizer(models.BPE(**UNKNOWN))
        made.normalizer = normalizers.Replace(" ", "▁")
        made.decoder = decoders.Replace("▁", " ")
        trainer = trainers.BpeTrainer(**special)
    elif kind == "WordPiece":
        made = Tokenizer(models.WordPiece(**UNKNOWN))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**special)
    else:
        made = Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(**UNKNOWN, **special)
    made.train_from_iterator(corpus, trainer)
    return made.to_str()


REAL = ("byte-level BPE", "BPE", "WordPiece", "Unigram")
TEXTS = st.text(st.sampled_from("abcdehfinoprstu() :#+é"), max_size=30)


def pair(kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    small, large = {"byte-level BPE": (275, 290)}.get(kind, (38, 60))
    one = json.loads(trained(kind, tuple(ENGLISH), small))
    return one, json.loads(trained(kind, tuple(CODE), large))


@pytest.mark.parametrize("kind", REAL)
def test_all_tokens_are_known_and_the_firsts_keep_their_ids(kind: str) -> None:
    one, two = pair(kind)
    ids, first, second = (read(d).get_vocab() for d in (union(one, two), one, two))
    assert {token: ids[token] for token in first} == first
    assert set(ids) == set(first) | set(second)
    assert len(ids) > len(first)
    assert sorted(ids.values()) == list(range(len(ids)))


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from(["byte-level BPE", "BPE"]))
def test_a_bpe_splits_as_the_first_and_may_join_neighbours(text: str, kind: str) -> None:
    one, two = pair(kind)
    first, both = read(one), read(union(one, two))
    before, after = first.encode(text), both.encode(text)
    known = first.get_vocab()
    if all(token in known for token in after.tokens):
        assert after.ids == before.ids
    if "<unk>" not in before.tokens:
        # every border between the union's tokens is a border between the first one's
        assert {o[0] for o in after.offsets} <= {o[0] for o in before.offsets}
        assert both.decode(after.ids) == first.decode(before.ids)


def test_other_merges_of_known_tokens_split_nothing_otherwise() -> None:
    def bpe(tokens: list[str], merges: list[list[str]]) -> dict[str, Any]:
        vocabulary = {token: i for i, token in enumerate(tokens)}
        pairs = [(left, right) for left, right in merges]
        return json.loads(Tokenizer(models.BPE(vocabulary, pairs)).to_str())

    tokens = ["t", "h", "e", "he", "th", "the"]
    one = bpe(tokens, [["h", "e"], ["t", "h"], ["th", "e"]])
    two = bpe([*tokens, "tt"], [["h", "e"], ["t", "he"], ["t", "t"]])
    assert read(one).encode("the").tokens == ["t", "he"]  # "the" is never reached
    assert read(two).encode("the").tokens == ["the"]
    both = read(union(one, two))
    assert both.encode("the").tokens == ["t", "he"]
    assert both.encode("tt").tokens == ["tt"]


@pytest.mark.parametrize("kind", ["byte-level BPE", "BPE"])
def test_a_bpe_that_was_extended_is_split_as_its_model_was_trained(kind: str) -> None:
    """The usual case: new tokens and their merges were appended to the base's."""
    one, two = pair(kind)
    extended = union(one, two)
    both = read(union(one, extended))
    assert both.get_vocab() == read(extended).get_vocab()
    for line in ENGLISH[:3] + CODE[:3]:
        assert both.encode(line).ids == read(extended).encode(line).ids
        assert len(both.encode(line).ids) <= len(read(one).encode(line).ids)
    assert any(both.encode(line).ids != read(one).encode(line).ids for line in CODE)


@pytest.mark.parametrize("kind", REAL)
@pytest.mark.parametrize("ordinary", [False, True])
def test_added_tokens_are_recognised(kind: str, ordinary: bool) -> None:
    one, other = pair(kind)
    size = len(read(one).get_vocab())
    one = {**one, "added_tokens": [*one["added_tokens"], added(size, "<mine>")]}
    two = other if ordinary else json.loads(json.dumps(one))
    last = max(read(two).get_vocab().values())
    two["added_tokens"] = [
        *two["added_tokens"],
        added(last + 1, "<|im|>", special=True),
        added(last + 2, "<tool>"),
    ]
    made = union(one, two)
    both = read(made)
    assert both.token_to_id("<mine>") == size
    assert max(both.get_vocab().values()) == len(both.get_vocab()) - 1
    encoded = both.encode("the<|im|>cat<mine>hat<tool>")
    assert [t for t in encoded.tokens if t.startswith("<")] == ["<|im|>", "<mine>", "<tool>"]
    assert "<|im|>" not in both.decode(encoded.ids)  # special: skipped
    assert "<tool>" in both.decode(encoded.ids)
    if not ordinary:
        assert made["model"] == one["model"]
        assert both.encode("the cat").ids == read(one).encode("the cat").ids


def test_text_without_new_words_is_split_as_before() -> None:
    one, two = word_level({"<unk>": 0, "a": 1}), word_level({"a": 0, "<unk>": 1, "b": 2})
    both = read(union(one, two))
    assert both.encode("a b c").ids == [1, 2, 0]


def test_a_token_that_another_model_added_is_recognised_under_its_old_id() -> None:
    one = word_level({"<unk>": 0, "a": 1, "<|im|>": 2})
    two = word_level({"<unk>": 0, "a": 1}, [added(2, "<|im|>", special=True)])
    assert read(one).encode("a<|im|>a").ids == [0]
    assert read(union(one, two)).encode("a<|im|>a").ids == [1, 2, 1]


def test_the_order_of_new_ids_is_models_then_ids() -> None:
    one = word_level({"<unk>": 0}, [added(1, "<x>")])
    two = word_level({"<unk>": 0, "b": 1, "a": 2}, [added(3, "<y>")])
    three = word_level({"<unk>": 0, "a": 1, "c": 2}, [added(3, "<z>")])
    assert read(union(one, two, three)).get_vocab() == {
        **{"<unk>": 0, "<x>": 1},
        **{"b": 2, "a": 3, "c": 4},
        **{"<y>": 5, "<z>": 6},
    }


def test_nothing_new_changes_nothing() -> None:
    one = word_level({"<unk>": 0, "a": 1, "b": 2})
    two = word_level({"<unk>": 1, "a": 0})
    assert union(one, two, two) == one


def test_old_merges_are_read() -> None:
    one, two = pair("BPE")
    old = json.loads(json.dumps(two))
    old["model"]["merges"] = [" ".join(merge) for merge in two["model"]["merges"]]
    assert union(one, old) == union(one, two)


def test_ordinary_tokens_of_another_kind_are_refused() -> None:
    one, two = pair("byte-level BPE")[0], pair("BPE")[1]
    with pytest.raises(ModelError, match=r"m1: .* of a BPE tokenizer; m0 has a byte-level BPE"):
        union(one, two)
    extra = {
        **one,
        "added_tokens": [*one["added_tokens"], added(len(read(one).get_vocab()), "<z>")],
    }
    assert "<z>" in read(union(one, extra)).get_vocab()


def test_holes_are_told() -> None:
    one = word_level({"<unk>": 0, "a": 7})
    with pytest.raises(ModelError, match="m0: no tokens can be appended: its ids have holes"):
        union(one, word_level({"<unk>": 0}, [added(1, "<x>")]))


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="where: is no tokenizer"):
        ids_of('{"model": 3}', "where")
    shared = word_level({"<unk>": 0, "a": 1}) | {"added_tokens": []}
    shared["model"]["vocab"]["b"] = 1
    with pytest.raises(ModelError, match="where: 'a' and 'b' share the id 1"):
        ids_of(json.dumps(shared), "where")
