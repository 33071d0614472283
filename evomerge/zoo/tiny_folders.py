"""What the tiny models are: configuration, first weights and tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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
