"""What mkdocs does beside its own: pages that stand elsewhere, and links that leave docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """CONTRIBUTING.md stands at the root, where people look for it, and is a page as well."""
    text = (Path(config["docs_dir"]).parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    files.append(File.generated(config, "contributing.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """A link to a file outside docs/ becomes its name: the site has no such page."""
    here = (Path(config["docs_dir"]) / page.file.src_uri).parent
    docs = Path(config["docs_dir"]).resolve()

    def named(match: re.Match[str]) -> str:
        text, up, path, _ = match.groups()
        target = (here / (up + path)).resolve()
        if target.is_relative_to(docs):
            return match[0]
        own = target.relative_to(docs.parent)
        return text if str(own) in text else f"{text} (`{own}`)"

    return OUTSIDE.sub(named, markdown)
