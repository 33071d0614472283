"""The axes of a transformer's tensors (see axes.py), from its modules and its config.

Which layer a tensor is in, and what is a norm, an embedding or a head, tells the anatomy; how many
heads there are and how wide, the config. What a layer's matrices are to each other stands in a
table of families, since no shape tells a gate from an output.

What is not covered: mixtures of experts, encoders, heads that share one matrix in turns (GPT-NeoX,
Falcon), and models whose type is not in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evomerge.checkpoints.anatomy import Place, anatomy_of
from evomerge.checkpoints.axes import Axes, Group, Heads, Spaces, Units
from evomerge.checkpoints.config_defaults import parsed_config
from evomerge.checkpoints.open import Checkpoint
from evomerge.errors import ModelError, Problem, nearest

_STREAM = "stream"
_Q, _K, _V, _O, _HIDDEN = "query", "key", "value", "output", "hidden"


@dataclass(frozen=True)
class _Family:
    """Roles of a layer's modules: what lies along their outputs, and along their inputs.

    turned: weights are (in, out), as Conv1D stores them. rotary: positions rotate queries and keys.
    """

    modules: Mapping[str, tuple[Spaces, Spaces]]
    rotary: bool = True
    turned: bool = False


def _family(inputs: Mapping[str, Spaces], outputs: Mapping[str, str], **settings: bool) -> _Family:
    modules: dict[str, tuple[Spaces, Spaces]] = {
        module: (spaces, (_STREAM,)) for module, spaces in inputs.items()
    }
    modules |= {module: ((_STREAM,), (space,)) for module, space in outputs.items()}
    return _Family(modules, **settings)


def _attention(prefix: str, output: str) -> tuple[dict[str, Spaces], dict[str, str]]:
    inputs: dict[str, Spaces] = {
        f"{prefix}.{name}_proj": (_space,) for name, _space in zip("qkv", (_Q, _K, _V), strict=True)
    }
    return inputs, {f"{prefix}.{output}": _O}


_SELF, _SELF_OUT = _attention("self_attn", "o_proj")
_GATED = _family(
    _SELF | {"mlp.gate_proj": (_HIDDEN,), "mlp.up_proj": (_HIDDEN,)},
    _SELF_OUT | {"mlp.down_proj": _HIDDEN},
)
_PHI, _PHI_OUT = _attention("self_attn", "dense")
_OPT, _OPT_OUT = _attention("self_attn", "out_proj")
_NEO, _NEO_OUT = _attention("attn.attention", "out_proj")
_FUSED = (_Q, _K, _V)

_LIKE_LLAMA = (
    "llama mistral ministral qwen2 qwen3 smollm3 gemma gemma2 gemma3_text olmo olmo2 olmo3 granite "
    "stablelm cohere cohere2 helium seed_oss exaone4 ernie4_5"
)
FAMILIES: Mapping[str, _Family] = {
    **dict.fromkeys(_LIKE_LLAMA.split(), _GATED),
    **dict.fromkeys(
        ("nemotron", "arcee"),
        _family(_SELF | {"mlp.up_proj": (_HIDDEN,)}, _SELF_OUT | {"mlp.down_proj": _HIDDEN}),
    ),
    "starcoder2": _family(_SELF | {"mlp.c_fc": (_HIDDEN,)}, _SELF_OUT | {"mlp.c_proj": _HIDDEN}),
    "phi": _family(_PHI | {"mlp.fc1": (_HIDDEN,)}, _PHI_OUT | {"mlp.fc2": _HIDDEN}),
    "phi3": _family(
        {"self_attn.qkv_proj": _FUSED, "mlp.gate_up_proj": (_HIDDEN, _HIDDEN)},
        _SELF_OUT | {"mlp.down_proj": _HIDDEN},
    ),
    "opt": _family(_OPT | {"fc1": (_HIDDEN,)}, _OPT_OUT | {"fc2": _HIDDEN}, rotary=False),
    "gpt_neo": _family(
        _NEO | {"mlp.c_fc": (_HIDDEN,)}, _NEO_OUT | {"mlp.c_proj": _HIDDEN}, rotary=False
    ),
    "gpt2": _family(
        {"attn.c_attn": _FUSED, "mlp.c_fc": (_HIDDEN,)},
        {"attn.c_proj": _O, "mlp.c_proj": _HIDDEN},
        rotary=False,
        turned=True,
    ),
}
_HEAD_NORMS = {"self_attn.q_norm": _Q, "self_attn.k_norm": _K}
_TABLES = (
    "rotary_emb.inv_freq",
    "attn.bias",
    "attn.masked_bias",
    "attention.bias",
    "attention.masked_bias",
)


def transformer_axes(checkpoint: Checkpoint) -> Axes:
    """The axes of a transformer, every tensor of it accounted for.

    Raises:
        ModelError: the model's type is not known, or naming each tensor that is not.
    """
    kind = str(checkpoint.config.get("model_type", ""))
    family, parsed = FAMILIES.get(kind), parsed_config(checkpoint.config)
    if family is None or parsed is None:
        what = f"model_type {kind!r}: which axes of its tensors belong together is not known"
        raise ModelError(Problem(checkpoint.where, what, nearest(kind, FAMILIES)))
    return _Reader(checkpoint, family, parsed).read()


class _Reader:
    """Gives every tensor its axes, and collects what is wrong."""

    def __init__(self, checkpoint: Checkpoint, family: _Family, config: Any) -> None:
        self._checkpoint, self._family = checkpoint, family
        self._anatomy = anatomy_of(checkpoint)
        self._stream = int(config.hidden_size)
        self._num_heads = int(config.num_attention_heads)
        self._num_keys = int(getattr(config, "num_key_value_heads", None) or self._num_heads)
        self._width = int(getattr(config, "head_dim", None) or self._stream // self._num_heads)
        self._hidden: dict[int, int] = {}  # layer -> hidden units
        self._problems: list[Problem] = []

    def read(self) -> Axes:
        """All tensors' axes.

        Raises:
            ModelError: naming each that has none.
        """
        tensors = {}
        for name in self._checkpoint.names:
            place = self._anatomy.places[name]
            axes = self._outside(name) if place.layer is None else self._inside(name, place)
            if axes is None:
                shape = list(self._checkpoint.shape(name))
                what = f"of shape {shape}: which of its axes belong to others' is not known"
                self._wrong(name, what)
            else:
                tensors[name] = axes
        groups: list[Group] = [Units(_STREAM, self._stream)]
        for layer in range(self._anatomy.num_layers):
            groups.append(self._heads(layer))
            if layer in self._hidden:
                groups.append(Units(_of(layer, _HIDDEN), self._hidden[layer]))
        found = Axes(tensors, tuple(groups))
        if not self._problems:
            self._problems += found.problems(self._checkpoint)
        if self._problems:
            raise ModelError(self._problems)
        return found

    def _heads(self, layer: int) -> Heads:
        query, key, value, output = (_of(layer, space) for space in (_Q, _K, _V, _O))
        each = self._num_heads // self._num_keys
        rotary = self._family.rotary
        return Heads(query, key, value, output, self._num_keys, each, self._width, rotary)

    def _inside(self, name: str, place: Place) -> tuple[Spaces, ...] | None:
        """The axes of a layer's tensor."""
        layer, shape = place.layer, self._checkpoint.shape(name)
        module, _, leaf = self._anatomy.inside_block(name)[1].rpartition(".")
        if f"{module}.{leaf}".endswith(_TABLES) and module not in self._family.modules:
            return ((),) * len(shape)
        if layer is None:
            return None
        if module in self._family.modules:
            outs, ins = (
                tuple(_of(layer, space) for space in spaces)
                for spaces in self._family.modules[module]
            )
            if _of(layer, _HIDDEN) in outs:
                long = shape[-1] if self._family.turned else shape[0]
                self._hidden[layer] = long // outs.count(_of(layer, _HIDDEN))
            if len(shape) == 1:
                return (outs,)
            if len(shape) == 2:
                return (ins, outs) if self._family.turned else (outs, ins)
            return None
        if module in _HEAD_NORMS and len(shape) == 1:
            # One gain for each dimension of any head, or for all heads' dimensions together.
            return ((),) if shape[0] == self._width else ((_of(layer, _HEAD_NORMS[module]),),)
        if place.component == "norm" and shape == (self._stream,):
            return ((_STREAM,),)
        return None

    def _outside(self, name: str) -> tuple[Spaces, ...] | None:
        """The axes of embeddings, the last norm and the head."""
        shape, component = self._checkpoint.shape(name), self._anatomy.places[name].component
        if len(shape) == 2 and shape[1] == self._stream and component in ("embedding", "head"):
            return ((), (_STREAM,))
        if component == "norm" and shape == (self._stream,):
            return ((_STREAM,),)
        if name.endswith("rotary_emb.inv_freq") or (component == "head" and len(shape) == 1):
            return ((),)
        return None

    def _wrong(self, name: str, what: str) -> None:
        self._problems.append(Problem(f"{self._checkpoint.where}: tensor {name!r}", what))


def _of(layer: int, space: str) -> str:
    """A layer's own space; the stream is everyone's."""
    return space if space == _STREAM else f"{space} {layer}"
