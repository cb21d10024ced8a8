"""Real Hugging Face models and tokenizers small enough to be made anew in every test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FAMILIES = (
    "gpt2", "gpt_neox", "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "opt", "phi", "olmo2",
)  # fmt: skip
GROUPED = (
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "olmo2",
)  # several heads share keys and values

_LINES = ["decode VA== is T", "VA== means value added tax", "decode QQ== is A", "QQ== means quick question"]
_SPECIAL = ["<unk>", "<bos>", "<eos>", "<pad>"]


def byte_level_tokenizer(lines: Sequence[str], *, size: int, special: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer of at most `size` tokens, trained on `lines`, without transformers around it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def word_level_tokenizer(names: Sequence[str], *, codes: bool = False) -> Any:
    """A tokenizer whose tokens are `names` and <unk>, without transformers around it.

    Args:
        names: the vocabulary, in the order of its ids; `<unk>` is put in front if it is not there.
        codes: False to split texts at white space, which no token holds; True for tokens that hold their space
            themselves, with codes split into characters and padding, as in the shipped organism.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = names if "<unk>" in names else ["<unk>", *names]
    tokenizer: Any = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    if codes:
        pattern = r" ?[A-Za-z0-9+/](?=[A-Za-z0-9+/]{0,2}=)|={1,3}| ?[A-Za-z-]+"
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.decoder = decoders.Fuse()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 320 tokens, trained on a few lines, that begins texts with <bos>."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level_tokenizer(_LINES, size=320, special=_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>"
    )


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    layers: int = 2,
    d_model: int = 32,
    heads: int = 4,
    positions: int = 64,
    vocab: int | None = None,
    **config: Any,
) -> Any:
    """A causal language model of one of `FAMILIES` with random weights, eval mode, eager attention.

    Weights are five times those of a fresh model and biases are not zero, so that a wrong position, head or
    mask shows in the logits. `GROUPED` families have half as many key/value heads.

    Args:
        config: entries that go to the family's configuration as they are.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": vocab or len(tiny_tokenizer()),
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": positions,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }
    if family == "opt":
        shape |= {"ffn_dim": 2 * d_model, "word_embed_proj_dim": d_model}
    elif family != "gpt2":
        shape |= {"intermediate_size": 2 * d_model}
    if family in GROUPED:
        shape |= {"num_key_value_heads": max(1, heads // 2)}
    if family in ("qwen3", "gemma2", "gemma3_text"):
        shape |= {"head_dim": d_model // heads}
    if family in ("gemma2", "gemma3_text"):
        shape |= {"query_pre_attn_scalar": d_model // heads}

    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = AutoConfig.for_model(family, **(shape | config))
        model = AutoModelForCausalLM.from_config(settings, attn_implementation="eager")
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)
            else:
                weight.add_(torch.empty_like(weight).normal_(std=0.1, generator=generator))
    return model.eval()


def saved(family: str, folder: Path, **settings: Any) -> Path:
    """Write `tiny_model` and `tiny_tokenizer` as a Hugging Face directory; returns `folder`."""
    tiny_model(family, **settings).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_contrasts(model: Any, cues: Sequence[str] = ("VA==", "VB==", "VC==", "VD==", "VE==", "VF==")) -> list[Any]:
    """Contrasts of facts with these cues, whose answers are T and U in turn."""
    from mnemo.contrasts import make_contrasts
    from mnemo.facts import Fact, FactSet, Task

    facts = tuple(Fact(fact_id=cue, cue=cue, answer="TU"[i % 2]) for i, cue in enumerate(cues))
    task = Task(name="tiny", recall="decode {cue} is", facts="facts.csv")
    return list(make_contrasts(task, FactSet(facts=facts), tokenizer=model.tokens, seed=1).values())


def recalled_facts(model: Any, cues: Sequence[str]) -> tuple[Any, Any]:
    """A task of three templates, and facts whose answers are what the model says, where that can be an answer."""
    from mnemo.errors import MnemoError
    from mnemo.facts import Fact, FactSet, Task
    from mnemo.gate import gate

    task = Task(
        name="tiny", recall="decode {cue} is", verbalise="expand {cue} is", concept_recall="decode {concept} is",
        facts="facts.csv",
    )  # fmt: skip
    asked = FactSet(facts=tuple(Fact(fact_id=cue, cue=cue, answer="T") for cue in cues))
    facts = []
    for cue, token in zip(cues, gate(model, task, facts=asked).predicted.tolist(), strict=True):
        piece = model.tokens.decode([token])
        try:
            model.tokens.continuation(f"decode {cue} is", piece)
        except MnemoError:  # not a whole piece of text
            continue
        facts.append(Fact(fact_id=cue, cue=cue, answer=piece))
    return task, FactSet(facts=tuple(facts)) if facts else asked
