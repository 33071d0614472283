"""Another chat template for the merged model than the one that its tokenizer brings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping

from evomerge.checkpoints.derived import Derived
from evomerge.checkpoints.open import Checkpoint
from evomerge.checkpoints.small_files import TEMPLATES, SmallFile, content, parsed, small_files
from evomerge.errors import ConfigurationError, Problem

AUTO = "auto"  # the template that most of the models have
FILE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"


def chosen_template(
    checkpoints: Mapping[str, Checkpoint], base: str, template: str
) -> tuple[str | None, list[str]]:
    """The text of the template that is asked for, and what a user should know of it.

    Args:
        checkpoints: by name, with their own small files.
        base: one of the names.
        template: Jinja's text, or `auto`: what most of the models have, and of equally many
            the base's, or else the first one's.

    Raises:
        ConfigurationError: the text is no template.
    """
    if template == AUTO:
        ordered = sorted(checkpoints, key=lambda name: name != base)
        known = {name: text for name in ordered if (text := template_of(checkpoints[name]))}
        if not known:
            return None, ["chat_template auto: no model has one"]
        text, count = Counter(known.values()).most_common(1)[0]
        owner = next(name for name, own in known.items() if own == text)
        return text, [f"chat_template auto: that of {owner}, as {count} of {len(known)} have it"]
    if "{" not in template:
        what = f"{template!r} is no Jinja template"
        hint = "write its text, or auto; evomerge brings no templates with names"
        raise ConfigurationError(Problem("chat_template", what, hint))
    return template, []


def with_chat_template(origin: Checkpoint, template: str) -> Checkpoint:
    """A model with another chat template."""
    files: dict[str, SmallFile] = {
        name: file
        for name, file in small_files(origin).items()
        if name != "chat_template.json" and not name.startswith(f"{TEMPLATES}/")
    }
    files[FILE] = template
    if SETTINGS in files:
        settings = parsed(files[SETTINGS], SETTINGS)
        if isinstance(settings, dict) and settings.pop("chat_template", None) is not None:
            files[SETTINGS] = json.dumps(settings, ensure_ascii=False, indent=2)
    return Derived(
        origin,
        {name: name for name in origin.names},
        small_files=files,
        change={"chat_template": template},
    )


def template_of(checkpoint: Checkpoint) -> str | None:
    """A model's chat template; the default one, where it has several."""
    files = small_files(checkpoint)
    if FILE in files:
        return content(files[FILE]).decode("utf-8", "replace").strip()
    settings = parsed(files[SETTINGS], SETTINGS) if SETTINGS in files else None
    found = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(found, list):  # of {"name": ..., "template": ...}
        by_name = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = by_name.get("default")
    return found.strip() if isinstance(found, str) else None
