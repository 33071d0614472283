"""Which tensors of a layer make what its residual branches add: scaled, they scale just that.

A branch that ends in a linear map adds a multiple when weight and bias of that map are multiplied;
so does a mixture of experts whose experts all end in one. Where a branch ends in a norm whose
weight is a plain factor (OLMo 2), it is that weight. Where the norm's factor is 1 + weight (Gemma
2 and 3), nothing can be multiplied, and the model is not here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from evomerge.errors import ConfigurationError, Problem, nearest

_Ends = tuple[
    tuple[str, ...], tuple[str, ...]
]  # modules that end attention, and the rest; * counts


def _rows(models: str, attention: str, rest: str) -> dict[str, _Ends]:
    return {model: (tuple(attention.split()), tuple(rest.split())) for model in models.split()}


BRANCH_ENDS: Mapping[str, _Ends] = {
    **_rows(
        "llama mistral ministral qwen2 qwen3 smollm3 gemma olmo stablelm cohere cohere2 granite "
        "phi3 nemotron helium glm arcee seed_oss ernie4_5 hunyuan_v1_dense",
        "self_attn.o_proj",
        "mlp.down_proj",
    ),
    **_rows("olmo2 olmo3 exaone4", "post_attention_layernorm", "post_feedforward_layernorm"),
    **_rows("glm4", "post_self_attn_layernorm", "post_mlp_layernorm"),
    **_rows("starcoder2", "self_attn.o_proj", "mlp.c_proj"),
    **_rows("phi", "self_attn.dense", "mlp.fc2"),
    **_rows("opt", "self_attn.out_proj", "fc2"),
    **_rows("gpt_neox", "attention.dense", "mlp.dense_4h_to_h"),
    **_rows("falcon", "self_attention.dense", "mlp.dense_4h_to_h"),
    **_rows("gpt2 gpt_bigcode", "attn.c_proj crossattention.c_proj", "mlp.c_proj"),
    **_rows("gptj codegen", "attn.out_proj", "mlp.fc_out"),
    **_rows("gpt_neo", "attn.attention.out_proj", "mlp.c_proj"),
    **_rows("mixtral", "self_attn.o_proj", "block_sparse_moe.experts.*.w2"),
    **_rows("olmoe", "self_attn.o_proj", "mlp.experts.*.down_proj"),
    **_rows(
        "qwen2_moe qwen3_moe",
        "self_attn.o_proj",
        "mlp.down_proj mlp.experts.*.down_proj mlp.shared_expert.down_proj",
    ),
}
_ONE_PLUS = ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "vaultgemma")


def branch_outputs(model_type: str, inside: Mapping[str, tuple[int, str]]) -> frozenset[str]:
    """The tensors whose multiple is the multiple of what a layer's branches add to the stream.

    Args:
        model_type: as config.json has it; "" without one.
        inside: tensor name -> its layer, and its name inside the layer.

    Raises:
        ConfigurationError: the model type is not known, or a layer has no such tensors.
    """
    where = f"branch_scale: model_type {model_type!r}"
    if model_type in _ONE_PLUS:
        what = "its branches end in norms of 1 + weight, which no factor of the weight scales"
        raise ConfigurationError(Problem(where, what, "scale the layer's input instead"))
    if model_type not in BRANCH_ENDS:
        what = "how this model's residual branches end is not known"
        raise ConfigurationError(Problem(where, what, nearest(model_type, BRANCH_ENDS)))
    found: set[str] = set()
    layers = {layer for layer, _ in inside.values()}
    for ends in BRANCH_ENDS[model_type]:
        names = {name for name, (_, tail) in inside.items() if _is_one_of(tail, ends)}
        if lacking := layers - {inside[name][0] for name in names}:
            what = f"layer {min(lacking)} has no tensor of {' or '.join(ends)}"
            raise ConfigurationError(Problem(where, what))
        found |= names
    return frozenset(found)


def _is_one_of(tail: str, modules: Iterable[str]) -> bool:
    """Whether a tensor of a layer is a weight or bias of one of the layer's modules."""
    patterns = (re.escape(module).replace(r"\*", r"\d+") for module in modules)
    return any(re.fullmatch(rf"{pattern}\.(weight|bias)", tail) for pattern in patterns)
