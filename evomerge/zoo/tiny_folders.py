"""Hugging Face folders of the tiny models: configuration, tokenizer, weights and card."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, processors
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from evomerge.files import fsync, write_text

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F))
VOCABULARY = {token: index for index, token in enumerate((PAD, BOS, EOS, *PRINTABLE))}
NUM_POSITIONS = 48

HIDDEN = 64
NUM_LAYERS = 6


def new_model(generator: torch.Generator) -> LlamaForCausalLM:
    """An untrained model whose weights come from the generator alone, float32."""
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=160,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=0.5 / HIDDEN**0.5,
        tie_word_embeddings=False,
        attn_implementation="eager",  # a quarter faster to train than sdpa at this size
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=VOCABULARY[BOS],
        eos_token_id=VOCABULARY[EOS],
    )
    # transformers draws its own initial weights from the global generator; they are replaced here,
    # so the caller's generator is put back as it was.
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # the norms
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Characters as tokens; prepends the beginning of sequence itself.

    What is not printable ASCII is left out of the encoding.
    """
    tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, VOCABULARY[BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=NUM_POSITIONS,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],  # all that a Llama takes
        clean_up_tokenization_spaces=False,
    )


def write_model(folder: Path, model: LlamaForCausalLM, card: str) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    folder.mkdir(parents=True)
    config = model.config
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    ).save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    new_tokenizer().save_pretrained(folder)
    _name_tokenizer_for_all_versions(folder / "tokenizer_config.json")
    write_text(folder / "README.md", card)
    for path in (*folder.iterdir(), folder):
        fsync(path)


def _name_tokenizer_for_all_versions(path: Path) -> None:
    """Give the class the name that both know: what transformers 5 writes, 4 does not know."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
