"""YAML that people write: every problem with its line, and never a traceback."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from evomerge.documents import Document, Misfit, parse, read_yaml, refuse
from evomerge.errors import ConfigurationError


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = 1
    share: float | bool = 0.5


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> Outer:
        misfits = [
            Misfit(("many", k), "is not wanted", "try another") for k in self.many if k == "no"
        ]
        refuse(self, misfits)
        return self


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(folder: Path, text: str | bytes) -> list[str]:
    path = write(folder, text)
    with pytest.raises(ConfigurationError) as caught:
        parse(Outer, read_yaml(path))
    return [str(problem).replace(str(path), "F") for problem in caught.value.problems]


def test_what_is_right_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nmany: {a: {size: 3}}\n")
    assert parse(Outer, read_yaml(path)) == Outer(name="x", many={"a": Inner(size=3)})


def test_all_problems_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = "nme: x\ninner:\n  size: three\n  shar: 1\nmany:\n  a:\n    share: lots\n  b: 3\n"
    assert problems(tmp_path, text) == [
        "F:1 name: this key is missing",
        "F:3 inner.size: should be a valid integer, got 'three'",
        "F:4 inner.shar: unknown key (did you mean 'share'? valid: share, size)",
        "F:7 many.a.share: should be a valid number or a valid boolean, got 'lots'",
        "F:8 many.b: should be a mapping, got 3 (its keys: size, share)",
        "F:1 nme: unknown key (did you mean 'name'? valid: inner, many, name)",
    ]


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    low: int = 0
    high: int = 1

    @model_validator(mode="after")
    def _rises(self) -> Whole:
        if self.low >= self.high:
            refuse(self, [Misfit((), "does not rise", "did you mean 3?")])
        return self


def test_what_is_wrong_with_the_whole_is_told_once() -> None:
    for data in ({"low": 2}, {"low": 2, "hgh": 3}, {"low": 2, "high": "x"}):
        with pytest.raises(ConfigurationError) as caught:
            parse(Whole, Document(data))
        told = [problem.what for problem in caught.value.problems]
        assert told.count("does not rise") <= 1
        assert len(told) == len(data)


def test_what_a_model_refuses_as_a_whole_has_its_place_too(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: x\nmany:\n  yes_: {}\n  'no': {}\n") == [
        "F:4 many.no: is not wanted (try another)"
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\nname: y\n", ["F:2 name: the key stands twice"]),
        ("name: {a: 1,\n b: 2, a: 3}", ["F:2 name.a: the key stands twice"]),
        ("", ["F: the file is empty (needed: name)"]),
        ("- name\n", ["F:1: expected a mapping, got ['name']"]),
        ("just text", ["F:1: expected a mapping, got 'just text'"]),
        ("name: [\n", ["F:2: not valid YAML: expected the node content"]),
        ("name: x\n\tinner: 3\n", ["F:2: not valid YAML: a tab stands"]),
        ("name: !!python/object/apply:os.system [ls]\n", ["F:1: not valid YAML: could not"]),
        ("name: 2024-13-45\n", ["F: not valid YAML: month must be in 1..12"]),
        ("? [a]\n: 1\n", ["F:1: YAML does not read this key as a name"]),
        ("name: a\n---\nname: b\n", ["F:2: not valid YAML: but found another document"]),
        (b"name: \x07\n", ["F: not valid YAML: unacceptable character"]),
        (b"name: \xff\xfe\n", ["F:1: is no text in UTF-8"]),
        ("[" * 5000, ["F: nested too deeply"]),
        ("a: &a [*a]\nname: 1\n", ["F:1 a.0: refers to itself"]),
        ("name: x\noff: 1\n1: 2\n", ["F:2 off: YAML does not", "F:3 1: YAML does not"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    tmp_path: Path, text: str | bytes, told: list[str]
) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(told)
    for problem, start in zip(found, told, strict=True):
        assert problem.startswith(start)


def test_a_missing_file_names_its_nearest_sibling(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("a: 1")
    with pytest.raises(ConfigurationError, match="did you mean 'quickstart"):
        read_yaml(tmp_path / "quikstart.yaml")
    with pytest.raises(ConfigurationError, match=r"no such file$"):
        read_yaml(tmp_path / "nowhere" / "x.yaml")
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_aliases_do_not_multiply(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 40)]
    document = read_yaml(write(tmp_path, "\n".join(lines)))
    assert document.where(("a39",)).endswith(":40 a39")


def test_a_part_knows_where_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path, "outer:\n  many:\n    a:\n      size: 1\n      kind: z\n")
    part = read_yaml(path).part("outer", "many").part("a").without("kind")
    assert part.data == {"size": 1}
    assert part.where(("size",)) == f"{path}:4 outer.many.a.size"
    assert Document({}).where(("x", 0, "y")) == "x.0.y"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text("ab:-[]{}&*!? \n'\"#%|>,", max_size=40).map(str.encode))
def test_no_bytes_at_all_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, text: bytes
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "file.yaml"
    path.write_bytes(text)
    with contextlib.suppress(ConfigurationError):
        parse(Outer, read_yaml(path))
