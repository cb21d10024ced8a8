"""Loading a language model so that every activation can be read and patched.

`load` gives a `Model`: a transformer-lens bridge over raw, frozen weights, the tokenizer that belongs to
it, and a fingerprint.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mnemo.errors import MnemoError
from mnemo.libraries import in_one_line, quietly
from mnemo.model_checks import TOLERANCE, Probe, self_check
from mnemo.model_source import find_folder, read_model, read_tokenizer, twin_of
from mnemo.partial_runs import BlockOutput, measure_block_output
from mnemo.tokens import PromptTokenizer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mnemo.facts import Task

_PROBE_TOKENS = 8
# What a configuration says about where the model lies and how it was run, not about what it computes.
_INCIDENTAL = {
    "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen causal language model with hooks, and its tokenizer. Made by `load`.

    Attributes:
        bridge: the transformer-lens bridge: raw weights, nothing folded, no gradients, eval mode.
        tokens: how prompts are spelled.
        name: what the model is called in reports.
        fingerprint: SHA-256 over configuration and weights; the same in every process and however the
            model was loaded, another one in another dtype.
        probe: what `self_check` compares the bridge with.
        source: the directory or hub name that it was loaded from; None for a model in memory.
        block_output: what its blocks put out, as measured (`mnemo.partial_runs.measure_block_output`).
    """

    bridge: TransformerBridge
    tokens: PromptTokenizer
    name: str
    fingerprint: str
    probe: Probe = field(repr=False)
    source: str | None = field(default=None, repr=False)
    block_output: BlockOutput = field(default="unknown", repr=False)

    @property
    def n_layers(self) -> int:
        return self.bridge.cfg.n_layers

    @property
    def n_heads(self) -> int:
        return self.bridge.cfg.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads; fewer than `n_heads` under grouped-query attention."""
        return self.bridge.cfg.n_key_value_heads or self.n_heads

    @property
    def d_model(self) -> int:
        return self.bridge.cfg.d_model

    @property
    def n_positions(self) -> int:
        """The most tokens that a prompt may have."""
        return self.bridge.cfg.n_ctx

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding; a tokenizer may use fewer."""
        return self.bridge.cfg.d_vocab

    @property
    def device(self) -> torch.device:
        return next(self.bridge.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.bridge.parameters()).dtype

    @property
    def dtype_name(self) -> str:
        """The dtype as `load` takes it by name."""
        return str(self.dtype).removeprefix("torch.")

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        hooks: Sequence[tuple[str, Callable[..., Any]]] = (),
    ) -> Float[Tensor, "prompt pos vocab"]:
        """Logits of prompts of any lengths in one batch; position -1 is the last token of each.

        Padding goes in front, so count positions from the end, in `hooks` too. What stands at the padding
        itself means nothing.

        Args:
            prompts: token ids per prompt, BOS included.
            hooks: transformer-lens hooks (name, function) for this call alone.

        Raises:
            MnemoError: no prompts, an empty one, or one longer than the model reads.
        """
        ids, mask = batch_inputs(prompts, device=self.device)
        self.require_room(ids.shape[1])
        with self.bridge.hooks(fwd_hooks=list(hooks)):
            return self.bridge(ids, attention_mask=mask)

    def require_room(self, length: int) -> None:
        """Refuse prompts of a length that the model does not read.

        Raises:
            MnemoError: they have more than `n_positions` tokens.
        """
        if length > self.n_positions:
            raise MnemoError(
                f"a prompt has {length} tokens, but {self.name} reads at most {self.n_positions}: "
                "shorten the template, the cue or the concept"
            )

    def __repr__(self) -> str:
        return (
            f"Model({self.name!r}, {self.bridge.cfg.architecture}, {self.n_layers} layers, {self.n_heads} "
            f"heads, d_model {self.d_model}, {self.dtype_name} on {self.device}, {self.fingerprint[:8]})"
        )


def batch_inputs(
    prompts: Sequence[Sequence[int]], *, pad: int = 0, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, "prompt pos"], Int[Tensor, "prompt pos"]]:
    """Prompts of any lengths as one batch: ids, padded in front with `pad`, and the attention mask.

    Hand both to the bridge, `bridge(ids, attention_mask=mask)`, and each prompt has the logits that it has
    alone: from the mask the bridge (and OPT itself) counts positions from the first real token. Without the
    mask the logits are wrong. Any id will do as `pad`, since nothing attends to it.

    Raises:
        MnemoError: no prompts, or an empty one.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise MnemoError("a batch needs at least one prompt, and every prompt at least one token")
    longest = max(len(prompt) for prompt in prompts)
    rows = [[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    mask = torch.arange(longest) >= longest - lengths[:, None]
    return torch.tensor(rows, device=device), mask.long().to(device)


def load(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    bos: bool | None = None,
    check: bool = True,
) -> Model:
    """Load a causal language model with raw, frozen weights, in eval mode (no dropout), eager attention.

    Nothing that came with a model is ever run: weights are read from safetensors alone, and a model that
    brings Python code is refused.

    Args:
        source: ``"organism"`` for the one that mnemo ships, a Hugging Face directory, a study folder that
            holds one as ``model/``, a hub name, or a causal model in memory. A model in memory stays as it
            is (mode, gradients, modules): mnemo takes a twin that shares its weights where device and
            dtype allow. Having changed the weights, load again.
        tokenizer: a fast tokenizer; needed for a model in memory, otherwise in place of the one saved.
        device: where to compute; None for CUDA where there is one, else the CPU.
        dtype: of the weights, such as ``"float32"``; None to leave it as saved.
        bos: None to begin prompts as the tokenizer does, True or False to put its BOS token or leave it.
        check: run `self_check` on the result.

    Raises:
        MnemoError: the source is not there, cannot be read or is of a kind that mnemo does not take.
        ModelCheckError: it was loaded, but `self_check` or its tokenizer failed.
    """
    device, dtype = _device(device), checked_dtype(dtype)
    origin = None
    if isinstance(source, str | Path):
        folder, name = find_folder(source)
        origin = str(folder.absolute()) if Path(source).expanduser().exists() else str(source)
        with quietly():
            hf = read_model(folder, dtype)
            tokenizer = read_tokenizer(folder) if tokenizer is None else tokenizer
    else:
        if tokenizer is None:
            raise MnemoError("a model in memory comes without a tokenizer: give load(..., tokenizer=...) too")
        with quietly():
            hf, name = twin_of(source, dtype)
    tokens = _tokens(tokenizer, bos, hf)
    checked_dtype(hf.dtype)

    with quietly():
        with in_one_line(f"{name} cannot be put on {device}", fix="give another device= or dtype="):
            hf = hf.to(device)  # pyright: ignore[reportArgumentType]
        hf.eval().requires_grad_(False)
        fingerprint, probe = _fingerprint(hf), _probe(hf)
        bridge = _bridge(hf, tokens, name)
        model = Model(bridge, replace(tokens, longest=bridge.cfg.n_ctx), name, fingerprint, probe, origin)
        there_and_back = torch.tensor([probe.ids, probe.ids[::-1]], device=device)
        output = measure_block_output(model, there_and_back, tolerance=TOLERANCE[model.dtype])
        model = replace(model, block_output=output)
    if check:
        self_check(model)
    return model


def load_for(
    task: Task, model: Model | str | Path | None, *, device: str | None = None, dtype: str | None = None
) -> Model:
    """Return the model that a run of a task takes: the one given, loaded if it is not yet, or the task's own.

    Args:
        task: the task.
        model: a loaded model, which stays as it is, or what `load` takes; None for the task's own.
        device, dtype: as for `load`.

    Raises:
        MnemoError: as `load` does; or none is given and the task names none.
    """
    return model if isinstance(model, Model) else load(task.model_source(model), device=device, dtype=dtype)


def _vocabulary(hf: PreTrainedModel) -> int:
    embedding: Any = hf.get_input_embeddings()
    return embedding.weight.shape[0]


def _tokens(tokenizer: object, bos: bool | None, hf: PreTrainedModel) -> PromptTokenizer:
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        kind = type(tokenizer).__name__
        raise MnemoError(f"tokenizer= is a {kind}: give a fast tokenizer object of transformers")
    rows = _vocabulary(hf)
    last = max(tokenizer.get_vocab().values())
    if last >= rows:
        raise MnemoError(
            f"the tokenizer has ids up to {last}, but the model embeds only {rows} tokens: give the "
            "tokenizer that it was trained with, or resize_token_embeddings before training"
        )
    return PromptTokenizer(tokenizer, bos)


def _fingerprint(hf: PreTrainedModel) -> str:
    def line(item: tuple[str, Tensor]) -> str:
        name, weight = item
        content = weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        return f"{name} {weight.dtype} {tuple(weight.shape)} {hashlib.sha256(content).hexdigest()}"

    with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free, at about 1 GB/s a core
        lines = list(pool.map(line, sorted(hf.state_dict().items())))
    lines.append(json.dumps(_lasting(hf.config.to_dict()), sort_keys=True, default=str))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _lasting(config: dict[Any, Any]) -> dict[Any, Any]:
    """A configuration and those nested in it, without what is incidental."""
    return {
        key: _lasting(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in _INCIDENTAL
    }


def _probe(hf: PreTrainedModel) -> Probe:
    rows = _vocabulary(hf)
    length = min(_PROBE_TOKENS, rows, getattr(hf.config, "max_position_embeddings", _PROBE_TOKENS))
    ids = torch.linspace(0, rows - 1, length).long()
    with torch.no_grad(), in_one_line("the model cannot read a few tokens", fix="check its config.json"):
        logits = hf(ids[None].to(hf.device)).logits[0]
    if not logits.isfinite().all():
        raise MnemoError(f"the model's own logits are not finite in {hf.dtype}: give dtype='float32', or mend it")
    return Probe(tuple(ids.tolist()), logits.float().cpu())


def _bridge(hf: PreTrainedModel, tokens: PromptTokenizer, name: str) -> TransformerBridge:
    from transformer_lens.model_bridge import TransformerBridge

    # The bridge adds special tokens to its tokenizer, and without these two entries it loads another one.
    tokenizer = copy.deepcopy(tokens.hf)
    tokenizer.init_kwargs.update(name_or_path=name, add_bos_token=True)
    architecture = (hf.config.architectures or [type(hf).__name__])[0]
    with in_one_line(f"transformer-lens cannot bridge {architecture}", fix="use another architecture"):
        bridge = TransformerBridge.boot_transformers(
            f"local/{name}",  # never the bare name, which the bridge might take for one on the hub
            hf_model=hf,
            tokenizer=tokenizer,
            device=str(hf.device),
            dtype=hf.dtype,
        )
    bridge.requires_grad_(False)  # bridging makes parameters of its own where weights are fused
    if hf.dtype == torch.float64:
        for attention in (getattr(block, "attn", None) for block in getattr(bridge, "blocks", ())):
            if attention is not None:  # what has none is refused by name in `self_check`
                attention.register_forward_pre_hook(_bound_mask, with_kwargs=True)
    return bridge


def _bound_mask(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Raise the lowest float64, which masks hidden tokens, to the lowest float32.

    Many families (Llama, OPT ...) take the softmax of float64 scores in float32, where the former is minus infinity:
    at padding, which sees no token, all would be NaN, and from there at every token that should not see the padding.
    """
    mask = named.get("attention_mask")
    if isinstance(mask, Tensor) and mask.is_floating_point():
        named = {**named, "attention_mask": mask.clamp(min=torch.finfo(torch.float32).min)}
    return given, named


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise MnemoError(f"device {device!r} is unknown: use 'cpu', 'cuda' or 'cuda:1'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise MnemoError(f"device {str(device)!r} needs CUDA, which torch does not find here: use 'cpu'")
    return chosen


def checked_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """Return the dtype that is meant; MnemoError for one that nothing is computed in."""
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and chosen not in TOLERANCE:
        names = ", ".join(str(kind).removeprefix("torch.") for kind in TOLERANCE)
        raise MnemoError(f"dtype {dtype!r} is not one to compute in: use one of {names}")
    return chosen
