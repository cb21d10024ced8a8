"""Does a loaded model do what every later step takes for granted? `self_check` measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mnemo.errors import MnemoError
from mnemo.libraries import first_line
from mnemo.tokens import PromptTokenizer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

    from mnemo.model import Model

# How far two ways to compute the same tensor may lie apart, as a share of its largest entry: rounding in
# that many bits, with room for sums over heads and for kernels that add in another order. Sums are taken in
# float32 (not every device has more), so float64 cannot ask for its own precision.
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
_SPELLINGS = ("decode VA== is T", "The quick brown fox, 1987.", " naïve café\n  x = y_2")
_OWN_WORDS = 64
_WITHOUT_HOOKS = "remove its hooks (model.bridge.reset_hooks(including_permanent=True))"


class ModelCheckError(MnemoError):
    """A model does not do what every later step relies on: what failed, by how much, what to try."""


@dataclass(frozen=True)
class Probe:
    """A few tokens and what the Hugging Face model itself made of them before it was bridged.

    Attributes:
        ids: token ids, spread evenly over the vocabulary.
        logits: float32 on the CPU.
    """

    ids: tuple[int, ...]
    logits: Float[Tensor, "pos vocab"]


def self_check(model: Model) -> None:
    """Measure what every later step relies on; hooks, flags and modes stay exactly as they are.

    From the small to the large: text survives its tokens, attention rows sum to one, the residual stream
    is the sum of what its writers add, and the logits are those that the Hugging Face model gave when it
    was loaded. Tensors may differ by a share of their largest entry that depends on the dtype.

    Raises:
        ModelCheckError: the first of these that does not hold, the number measured and what to try.
    """
    _check_round_trip(model)
    logits, seen = _run_probe(model)
    _check_blocks(model, seen)
    gap = _gap([logits], model.probe.logits)
    _demand(
        model,
        gap,
        "logits differ from those that the Hugging Face model gave on loading",
        f"{_WITHOUT_HOOKS}, or load it again if its weights were changed",
    )


def _hook_names(bridge: TransformerBridge) -> list[str]:
    names = ["hook_embed", "hook_pos_embed"] if _has_positions(bridge) else ["hook_embed"]
    stream = ["hook_resid_pre", "hook_attn_out", "hook_resid_post"]
    stream += [] if bridge.cfg.attn_only else ["hook_mlp_out"]
    attention = ["attn.hook_pattern", "attn.hook_z", "attn.hook_out"]
    layers = range(bridge.cfg.n_layers)
    return names + [f"blocks.{layer}.{hook}" for layer in layers for hook in stream + attention]


def _has_positions(bridge: TransformerBridge) -> bool:
    """Whether the residual stream starts with learned positions (rotary ones never enter it)."""
    return hasattr(bridge, "pos_embed")


def _run_probe(model: Model) -> tuple[Float[Tensor, "pos vocab"], dict[str, Tensor]]:
    """Logits of the probe and the activations at `_hook_names`, without the batch axis."""
    seen: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any, *, name: str) -> None:
        seen[name] = activation.squeeze(0)

    def hooked(name: str) -> tuple[str, Callable[..., None]]:
        return name, lambda activation, hook: keep(activation, hook, name=name)

    names = _hook_names(model.bridge)
    absent = [name for name in names if model.bridge.get_hook_point(name) is None]
    if not absent:
        with torch.no_grad():
            logits = model.forward([model.probe.ids], hooks=[hooked(name) for name in names])
        absent = [name for name in names if name not in seen]
        if not absent:
            return logits[0], seen
    raise ModelCheckError(
        f"{model.name}: transformer-lens shows no {absent[0]} for {model.bridge.cfg.architecture}, so mnemo "
        "cannot tell its writers apart: use a model of another architecture (GPT-2, Llama, Qwen2 ... style)"
    )


def _check_round_trip(model: Model) -> None:
    """Text -> tokens -> text -> the same tokens; spaces may come and go."""
    for text in [*_SPELLINGS, *_from_vocabulary(model.tokens)]:
        try:
            ids = model.tokens.encode(text).ids
        except MnemoError:  # a small vocabulary cannot spell everything
            continue
        again = model.tokens.decode(ids)
        try:
            back = model.tokens.encode(again).ids
        except MnemoError:
            back = ()
        if back == ids:
            return
        changed = sum(a != b for a, b in zip(ids, back, strict=False)) + abs(len(ids) - len(back))
        raise ModelCheckError(
            f"{model.name}: {changed} of {len(ids)} tokens of {text!r} change when decoded ({again!r}) and "
            "encoded again (0 may): give the tokenizer that the model was trained with, with its decoder"
        )
    raise ModelCheckError(
        f"{model.name}: its tokenizer spells none of {len(_SPELLINGS)} sample texts, nor any of {_OWN_WORDS} words of "
        "its own vocabulary: give the tokenizer that the model was trained with"
    )


def _from_vocabulary(tokens: PromptTokenizer) -> Iterator[str]:
    """Texts that a tokenizer for a made-up language should know: words of its own, with a space before or without.

    Some of its tokens may never stand alone (a piece of a code that only comes before another).
    """
    special = set(tokens.hf.all_special_ids)
    ids = sorted(id_ for id_ in tokens.hf.get_vocab().values() if id_ not in special)
    for id_ in ids[:: max(1, len(ids) // _OWN_WORDS)][:_OWN_WORDS]:
        if word := tokens.decode([id_]).strip():
            yield from (word, f" {word}")


def _check_blocks(model: Model, seen: dict[str, Tensor]) -> None:
    """Attention sums to one; embedding, heads, their biases and MLPs add up to the residual stream."""
    remedy = (
        f"{_WITHOUT_HOOKS}; a model that scales or normalises its residual stream elsewhere is none that "
        "mnemo can take apart"
    )
    sinks = f"{_WITHOUT_HOOKS}; a model whose attention goes elsewhere by design (sinks) is none for mnemo"
    before = [seen[name] for name in ("hook_embed", "hook_pos_embed") if name in seen]
    entering = "embedding and positions"
    for layer, block in enumerate(model.bridge.blocks):
        prefix = f"blocks.{layer}."
        here = {name.removeprefix(prefix): seen[name] for name in seen if name.startswith(prefix)}
        off = (here["attn.hook_pattern"].float().sum(-1) - 1).abs().max()
        _demand(model, float(off), f"attention rows of block {layer} do not sum to one", sinks)

        entry = here["hook_resid_pre"]
        _demand(model, _gap(before, entry), f"{entering} are not what enters block {layer}", remedy)

        heads, bias = _heads(model, here["attn.hook_z"], block.attn)
        what = f"heads and bias of block {layer} do not add up to its attention output"
        _demand(model, _gap([*heads, bias], here["attn.hook_out"]), what, remedy)

        # After the post-norm of blocks that have one: that is what enters the stream.
        writes = [here[name] for name in ("hook_attn_out", "hook_mlp_out") if name in here]
        what = f"the stream before block {layer}, its attention and its MLP do not add up to the stream after"
        _demand(model, _gap([entry, *writes], here["hook_resid_post"]), what, remedy)
        before, entering = [here["hook_resid_post"]], f"results of block {layer}"


def _heads(model: Model, z: Float[Tensor, "pos ..."], attn: Any) -> tuple[Float[Tensor, "head pos d_model"], Tensor]:
    """What each head writes, and the output bias (zero where there is none)."""
    try:
        heads = torch.einsum("phd,hdm->hpm", z.float(), attn.W_O.float())
    except (AttributeError, RuntimeError) as error:
        raise ModelCheckError(
            f"{model.name}: the heads of {model.bridge.cfg.architecture} cannot be told apart "
            f"({first_line(error)}): use a model with ordinary multi-head attention"
        ) from error
    bias = getattr(attn, "b_O", None)
    return heads, torch.zeros_like(heads[0]) if bias is None else bias.float().expand_as(heads[0])


def _gap(parts: Sequence[Float[Tensor, "..."]], whole: Float[Tensor, "pos d"]) -> float:
    """How far the sum of `parts` is from `whole`, as a share of the largest entry at that position.

    Infinite where shapes differ or anything is not a number.
    """
    parts = [part.float().to(whole.device) for part in parts]
    whole = whole.float()
    if any(part.shape != whole.shape for part in parts):
        return float("inf")
    off = (torch.stack(list(parts)).sum(0) - whole).abs().amax(-1)
    scale = torch.stack([whole, *parts]).abs().amax((0, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    return float((off / scale).nan_to_num(nan=torch.inf).max())


def _demand(model: Model, gap: float, what: str, remedy: str) -> None:
    allowed = TOLERANCE[model.dtype]
    if not gap <= allowed:
        raise ModelCheckError(f"{model.name}: {what}: off by {gap:.2g} (tolerance {allowed:.0e}): {remedy}")


def check_spelling(tokenizer: PreTrainedTokenizerBase, original: Any, *, file: Path) -> None:
    """Compare a tokenizer with the `tokenizers.Tokenizer` that its file holds.

    Raises:
        ModelCheckError: they spell a sample text differently.
    """
    for text in _SPELLINGS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = original.encode(text, add_special_tokens=False).ids
        if ids != expected:
            wrong = sum(a != b for a, b in zip(ids, expected, strict=False)) + abs(len(ids) - len(expected))
            raise ModelCheckError(
                f"{file}: {type(tokenizer).__name__} spells {text!r} otherwise than the file: {wrong} of "
                f"{len(expected)} tokens differ (0 may): set tokenizer_class to TokenizersBackend in "
                "tokenizer_config.json, or give tokenizer="
            )
