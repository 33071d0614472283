"""lm-eval compiles a template at every call; here a document's fields are rendered once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def remember_fields(task: Any, documents: Sequence[Any]) -> None:
    """Keep what lm-eval renders of a document: it compiles the template at every call."""
    places = {id(document): place for place, document in enumerate(documents)}
    for name in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        render = getattr(task, name, None)
        if render is not None:
            setattr(task, name, _remembering(render, places))


def _remembering(render: Callable[..., Any], places: Mapping[int, int]) -> Callable[..., Any]:
    known: dict[int, Any] = {}

    def recall(document: Any, *template: Any, **templates: Any) -> Any:
        place = places.get(id(document))
        if place is None or any(template) or any(templates.values()):
            return render(document, *template, **templates)
        if place not in known:
            known[place] = render(document)
        return known[place]

    return recall
