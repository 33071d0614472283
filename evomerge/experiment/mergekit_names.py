"""What a recipe calls the models of a mergekit file, and whose tokens it takes."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import chain
from pathlib import Path

from evomerge.checkpoints.folder import is_adapter
from evomerge.documents import Document
from evomerge.errors import ConfigurationError, Problem
from evomerge.experiment.mergekit_file import MergekitFile, ModelRef, TokenSettings
from evomerge.recipe import UNION, TokenizerSpec, TokenRow


class Names:
    """What the recipe calls the file's models."""

    def __init__(self, file: MergekitFile, document: Document) -> None:
        self._file, self._document = file, document
        self._names: dict[ModelRef, str] = {}
        self.paths: dict[str, str] = {}
        module = file.module
        inputs = [*(module.models or ()), *chain(*(s.sources for s in module.slices or ()))]
        for ref in [file.base_model, *(one.model for one in inputs)]:
            if ref is not None:
                self.of(ref)

    def of(self, ref: ModelRef) -> str:
        """The name of a model.

        Raises:
            ConfigurationError: an adapter that is not of the base.
        """
        if ref not in self._names:
            base = self._file.base_model
            if ref.lora is not None and (base is None or base.path != ref.path or base.lora):
                what = f"an adapter is merged as a change of base_model, which is not {ref.path}"
                where = f"{self._document.path}: {ref.path}+{ref.lora}"
                raise ConfigurationError(Problem(where, what, "apply the adapter first"))
            path = found_path(ref.lora or ref.path, self._document)
            name = self._names[ref] = short_name(path, self.paths, reserved=(UNION,))
            self.paths[name] = path
        return self._names[ref]

    def is_adapter(self, name: str) -> bool:
        """Whether a model is an adapter's folder."""
        return is_adapter(Path(self.paths[name]))

    def tokenizer(self, base: str) -> TokenizerSpec | None:
        """What the recipe's `tokenizer` is."""
        settings = self._file.tokenizer
        source = self._file.tokenizer_source if settings is None else settings.source
        if source is None:
            return None
        if source == "base":
            source = base
        elif source != UNION:
            source = self._called(source)
        if settings is None:
            return TokenizerSpec(source=source)
        tokens = {token: self._row(one) for token, one in settings.tokens.items()}
        multiple = settings.pad_to_multiple_of
        return TokenizerSpec(source=source, tokens=tokens, pad_to_multiple_of=multiple)

    def _called(self, model: str | ModelRef) -> str:
        return self.of(model if isinstance(model, ModelRef) else ModelRef(path=model))

    def _row(self, settings: TokenSettings) -> TokenRow:
        source, force = settings.source, settings.force
        if isinstance(source, ModelRef):
            return TokenRow(model=self.of(source), force=force)
        model = None if source.model is None else self._called(source.model)
        return TokenRow(model=model, token=source.token, id=source.token_id, force=force)


def short_name(path: str, known: Collection[str], *, reserved: Collection[str]) -> str:
    """What a model is called: after its folder, and as none of the known and reserved ones."""
    name = re.sub(r"[^\w.-]+", "_", Path(path).name) or "model"
    name = f"{name}_model" if name in reserved else name
    same = sum(one == name or one.startswith(f"{name}_") for one in known)
    return f"{name}_{same + 1}" if name in known else name


def found_path(path: str, document: Document) -> str:
    """Relative to the file; or to the working folder, if it is there alone."""
    if path.startswith("zoo:"):
        return path
    folder = document.path.parent if document.path else Path()
    beside = (folder / Path(path).expanduser()).resolve()
    here = Path(path).expanduser().resolve()
    return str(here if here.exists() and not beside.exists() else beside)
