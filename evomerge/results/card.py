"""The README.md of an exported model or adapter, in the hub's format.

Whatever comes from models, tasks and files is escaped: see `results.markdown`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from evomerge.checkpoints.input_scales import INPUT_SCALES
from evomerge.recipe import Match, Recipe, Segments
from evomerge.results.card_scores import Found, model_index, scores_section, search_section
from evomerge.results.markdown import block, code, one_line, plain, table
from evomerge.results.origins import Origin, common_licence

ATTRIBUTE = "attribute"  # what an export may do with scales of layers' inputs


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as `evomerge merge` reads it."""
    data = recipe.model_dump(mode="json", exclude_defaults=True)
    flow = False if recipe.segments is None else None  # a table's rows in lines, not in columns
    return yaml.safe_dump({"evomerge_recipe": 1, **data}, sort_keys=False, default_flow_style=flow)


def model_card(
    recipe: Recipe,
    name: str,
    origins: Mapping[str, Origin] | None = None,
    found: Found | None = None,
    *,
    scaled: bool = False,
    for_hub: bool = False,
) -> str:
    """The card of a merged model.

    origins: of the recipe's models. found: what a search knows of it. scaled: whether config.json
    says scales of layers' inputs. for_hub: name no base model in the head that is on no hub: a hub
    refuses them.
    """
    origins = origins or _by_path(recipe)
    again = f" --scales {ATTRIBUTE}" if scaled else ""
    head = _head(origins, tuple(origins), for_hub=for_hub)
    head |= {"tags": ["merge", "evomerge"], "library_name": "transformers"}
    return _card(
        head,
        name,
        found,
        f"A merge of {len(origins)} models{_of_search(found)}, made with evomerge.\n"
        f"`evomerge merge evomerge_recipe.yaml{again} --out FOLDER` makes it again, bit for bit.",
        SCALES_SECTION if scaled else "",
        scores_section(found),
        models_section(recipe, origins),
        layers_section(recipe),
        _recipe_section(recipe),
        search_section(found),
    )


def adapter_card(
    recipe: Recipe,
    name: str,
    lines: Sequence[str],
    rank: int | None,
    origins: Mapping[str, Origin] | None = None,
    found: Found | None = None,
    *,
    for_hub: bool = False,
) -> str:
    """The card of a merge as an adapter; `lines` say what it lost. See `model_card`."""
    origins = origins or _by_path(recipe)
    options = "--adapter" if rank is None else f"--adapter --rank {rank}"
    head = _head(origins, (recipe.base,), for_hub=for_hub)
    if "base_model" in head:
        head |= {"base_model": head["base_model"][0], "base_model_relation": "adapter"}
    head |= {"tags": ["lora", "merge", "evomerge"], "library_name": "peft"}
    scores = scores_section(found)
    return _card(
        head,
        name,
        found,
        f"An adapter of {code(origins[recipe.base].name)}, merged with evomerge"
        f"{_of_search(found)}.\n"
        f"`evomerge merge evomerge_recipe.yaml {options} --out FOLDER` makes it again.",
        scores,
        "The scores are of the merged model, before it became an adapter." if scores else "",
        "## As an adapter\n\n" + "\n".join(f"- {plain(line)}" for line in lines),
        models_section(recipe, origins),
        _recipe_section(recipe),
        search_section(found),
    )


def _card(head: dict[str, Any], name: str, found: Found | None, *sections: str) -> str:
    """The head that a hub reads, the title, and the sections that say something."""
    if index := model_index(found, one_line(name)):
        head["model-index"] = index
    front = yaml.safe_dump(head, sort_keys=False).strip()
    body = [f"# {plain(name)}", *(section.strip("\n") for section in sections if section)]
    return f"---\n{front}\n---\n\n" + "\n\n".join(body) + "\n"


def _by_path(recipe: Recipe) -> dict[str, Origin]:
    return {label: Origin(source.path) for label, source in recipe.models.items()}


def _of_search(found: Found | None) -> str:
    if found is None:
        return ""
    row = found.row
    which = row["label"] or f"candidate {row['candidate']}"
    return f" ({plain(which)} of the search {code(found.search['name'])})"


def _head(origins: Mapping[str, Origin], of: Sequence[str], *, for_hub: bool) -> dict[str, Any]:
    """What a hub reads; `of` are the models that it is a merge of."""
    known = [origins[label] for label in of]
    names = [one_line(origin.name) for origin in known if origin.hub_id or not for_hub]
    head: dict[str, Any] = {}
    if names:
        head |= {"base_model": names, "base_model_relation": "merge"}
    if (licence := common_licence(origins)) is not None:
        head["license"] = licence
    return head


def models_section(recipe: Recipe, origins: Mapping[str, Origin]) -> str:
    """What went in, from where, and under what licences."""
    rows = []
    for label in sorted(recipe.models, key=lambda label: label != recipe.base):
        source, origin = recipe.models[label], origins[label]
        where = code(origin.name)
        where += f" at revision {code(origin.revision)}" if origin.revision else ""
        if source.match:
            where += f", its units in the order of {code(Match.of(source.match).model)}'s"
        role = " (base)" if label == recipe.base else ""
        hashed = code(source.sha256) if source.sha256 else "not known"
        rows.append([code(label) + role, where, origin.licence or "not stated", hashed])
    if (licence := common_licence(origins)) is not None:
        told = f"All of them state the same licence, {code(licence)}, so this model states it too."
    else:
        told = (
            "They state different licences, or some state none, so this card states none: whoever "
            "passes the model on has to see to it."
        )
    heads = ["model", "where", "licence", "sha256 of its tensors"]
    return f"## Models\n\n{table(heads, rows, numbers=False)}\n\n{told}"


def _recipe_section(recipe: Recipe) -> str:
    return f"## Recipe\n\n{block(recipe_yaml(recipe), 'yaml')}"


SCALES_SECTION = f"""
## Scaled inputs

**transformers alone computes another model than the one that was found.** The hidden states that
enter layer i have to be multiplied by `{INPUT_SCALES}[i]` of config.json, which no stock loader
reads. `evomerge.apply_scales(model)` does that to a loaded model, and so does

```python
import torch

def scale_inputs(model):
    lists = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList)]
    layers = max(lists, key=lambda m: sum(p.numel() for p in m.parameters()))
    for layer, scale in zip(layers, model.config.{INPUT_SCALES}, strict=True):
        def scaled(module, args, kwargs, scale=scale):
            if args:
                return (args[0] * scale, *args[1:]), kwargs
            return args, dict(kwargs, hidden_states=kwargs["hidden_states"] * scale)
        layer.register_forward_pre_hook(scaled, with_kwargs=True)
```
"""


def layers_section(recipe: Recipe) -> str:
    """What the model is made of, where its layers are not the models' own as they are."""
    if recipe.segments is not None:
        return segments_section(recipe.segments)
    slots = recipe.slots or ()
    if recipe.keeps_layers(len(slots)) and not recipe.is_scaled:
        return ""
    scales = [(f"{part} times", f"{part}_scale") for part in ("input", "branch")]
    scales = [(head, key) for head, key in scales if any(getattr(s, key) != 1 for s in slots)]
    rows = []
    for number, slot in enumerate(slots):
        sources = recipe.merge_for(number, "default").sources or ()
        made_of = ", ".join(f"{code(model)} {slot.layer_of(model)}" for model in sources)
        rows.append([str(number), made_of, *(f"{getattr(slot, key):g}" for _, key in scales)])
    return f"\n## Layers\n\n{table(['layer', 'made of', *(head for head, _ in scales)], rows)}"


def segments_section(segments: Segments) -> str:
    """How many stretches of the parameters there are, and what each model has of them."""
    stops = segments.stops
    sizes = [stop - start for start, stop in zip((0, *stops), stops, strict=False)]
    noun = (
        "a linear combination of the models"
        if len(stops) == 1
        else f"{len(stops)} stretches, each a linear combination of the models"
    )
    rows = []
    for model, weights in segments.weights.items():
        mean = sum(w * size for w, size in zip(weights, sizes, strict=True)) / stops[-1]
        rows.append([code(model), f"{mean:.3f}", f"{min(weights):.3f}", f"{max(weights):.3f}"])
    heads = ["model", "mean coefficient", "smallest", "largest"]
    return (
        f"\n## Stretches\n\nThe {stops[-1]:,} parameters, flattened, are {noun}.\n\n"
        f"{table(heads, rows)}\n"
    )
