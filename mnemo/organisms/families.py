"""Small decoders that organisms are: GPT-2, Llama (grouped-query), Qwen2, GPT-NeoX (parallel) and Gemma 2 style."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from mnemo.errors import MnemoError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Family = Literal["gpt2", "llama", "qwen2", "gpt_neox", "gemma2"]

# Training steps until codes of concepts that were never composed are recalled too: with learned positions more.
STEPS: dict[Family, int] = {"gpt2": 2600, "llama": 2000, "qwen2": 2000, "gpt_neox": 2000, "gemma2": 2000}


def new_model(family: Family, *, vocab_size: int, d_model: int, layers: int, heads: int, seed: int) -> PreTrainedModel:
    """Return a randomly initialised decoder; torch's global generator is as it was before.

    Raises:
        MnemoError: an unknown family.
    """
    import torch  # here, because the command line reads the names of families before it does anything

    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        return _decoder(family, vocab_size=vocab_size, d_model=d_model, layers=layers, heads=heads)


def _decoder(family: Family, *, vocab_size: int, d_model: int, layers: int, heads: int) -> PreTrainedModel:
    from transformers import (
        Gemma2Config,
        Gemma2ForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    specials: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "tie_word_embeddings": True}
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size, n_positions=16, n_embd=d_model, n_layer=layers, n_head=heads,
                activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, **specials,
            )
        )  # fmt: skip
    grouped: dict[str, Any] = {
        "vocab_size": vocab_size, "hidden_size": d_model, "intermediate_size": 8 * d_model // 3,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 2),
        "max_position_embeddings": 64, "use_cache": False, **specials,
    }  # fmt: skip
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(**grouped))
    if family == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**grouped))
    if family == "gpt_neox":
        return GPTNeoXForCausalLM(
            GPTNeoXConfig(
                vocab_size=vocab_size, hidden_size=d_model, intermediate_size=4 * d_model, num_hidden_layers=layers,
                num_attention_heads=heads, max_position_embeddings=64, use_cache=False, **specials,
            )
        )  # fmt: skip
    if family == "gemma2":  # norms behind, soft-capped scores and logits, heads wider than the stream has room for
        grouped |= {"intermediate_size": 3 * d_model, "attn_implementation": "eager"}
        return Gemma2ForCausalLM(Gemma2Config(**grouped, head_dim=32, query_pre_attn_scalar=32, sliding_window=8))
    raise MnemoError(f"unknown family {family!r}; choose one of {', '.join(get_args(Family))}")


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return the list of transformer blocks of a decoder made by `new_model`."""
    found = model.base_model.get_submodule("h" if hasattr(model.base_model, "h") else "layers")
    return cast("nn.ModuleList", found)


def mlp_weights(model: PreTrainedModel, *, above: int) -> list[str]:
    """Return the names of the parameters of all MLPs after the first `above` blocks."""
    every = {id(p): name for name, p in model.named_parameters()}
    return [every[id(p)] for block in blocks(model)[above:] for p in block.get_submodule("mlp").parameters()]
