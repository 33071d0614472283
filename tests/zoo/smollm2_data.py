"""Made-up examples in the shape of the real ones, enough for every task."""

from __future__ import annotations

import json
import random
from pathlib import Path

from evomerge.zoo.smollm2.items import DOMAINS

SENTIMENTS = ("positive", "negative", "neutral", "ambivalent")


def german(english: str) -> str:
    """A German text for one of ours: `Zeile Nr. 7. ...` for `... no. 7.`"""
    _, sentiment, _, _, domain, _, number = english.split()
    return f"Zeile Nr. {number} {sentiment} hier: {domain} {sentiment} Stück {number}"


def made_up_data(per_cell: int = 400) -> dict[str, list[dict]]:
    """What `read_data` gives, with `per_cell` texts of each sentiment and domain."""
    source = random.Random("made up")
    data: dict[str, list[dict]] = {}
    for domain in DOMAINS:
        data[f"multiemo/{domain}_sentence_en"] = [
            {
                "input": f"A {sentiment} line on {domain}, no. {number}.",
                "target_scores": {s: int(s == sentiment) for s in SENTIMENTS},
            }
            for sentiment in SENTIMENTS
            for number in range(per_cell)
        ]
        data[f"multiemo/{domain}_sentence_de"] = [
            {**line, "input": german(line["input"])}
            for line in data[f"multiemo/{domain}_sentence_en"]
        ]
    data["unit_conversion/si_conversion"] = [
        {
            "input": f"{n} m expressed in units of cm is ",
            "target_scores": {f"{n * 10**k}.0 cm.": int(k == 2) for k in range(5)},
        }
        for n in range(1, 2801)
    ]
    words = [f"word{n}" for n in range(60)]
    data["hyperbaton"] = []
    for _ in range(6000):
        usual = source.sample(words, source.randrange(3, 9))
        other = usual[::-1]
        first = source.random() < 0.5
        one, two = (usual, other) if first else (other, usual)
        text = (
            "Which sentence has the correct adjective order: "
            f'a " {" ".join(one)} " b " {" ".join(two)} " ?'
        )
        data["hyperbaton"].append(
            {"input": text, "target_scores": {"a": int(first), "b": 1 - first}}
        )
    return data


def write_json(folder: Path, data: dict[str, list[dict]]) -> dict[str, Path]:
    """The data as files of BIG-bench."""
    files = {}
    for name, examples in data.items():
        files[name] = folder / f"{name.replace('/', '-')}.json"
        files[name].write_text(json.dumps({"examples": examples}))
    return files
