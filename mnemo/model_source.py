"""The Hugging Face model and tokenizer that a source means: a directory, a name on the hub, a model in memory.

Nothing that came with a model is ever run: weights are read from safetensors alone, and a model that brings Python
code is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mnemo.checked import MOST_HEADS, MOST_LAYERS
from mnemo.datasets import data_path
from mnemo.errors import InputError, MnemoError
from mnemo.facts import is_hub_name
from mnemo.libraries import first_line, in_one_line, without_panic_reports
from mnemo.model_checks import check_spelling
from mnemo.textfiles import check_place, read_json
from mnemo.tokens import shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAX_CONFIG = 2**24  # bytes; a configuration has some thousand
_MOST = {
    "num_hidden_layers": MOST_LAYERS, "num_attention_heads": MOST_HEADS, "num_key_value_heads": MOST_HEADS,
    "hidden_size": 1_000_000,
    "head_dim": 1_000_000, "intermediate_size": 10_000_000, "ffn_dim": 10_000_000, "n_inner": 10_000_000,
    "vocab_size": 10_000_000,
}  # fmt: skip
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
# Under these names a tokenizer.json means what it says; AutoTokenizer may put the model type's class instead.
_AS_WRITTEN = ("TokenizersBackend", "PreTrainedTokenizerFast")


def config_folder(source: str | Path) -> tuple[Path, str]:
    """The directory with the configuration meant by `source`, and what to call it; of the hub no weights are fetched.

    A path may also be that of a config.json itself.

    Raises:
        MnemoError: there is none, or of a kind that mnemo does not take.
    """
    check_place(source, home=True)
    file = Path(source).expanduser()
    folder, name = find_folder(file.parent if file.name == "config.json" else source, weights=False)
    examine(folder)
    return folder, name


def find_folder(source: str | Path, *, weights: bool = True) -> tuple[Path, str]:
    """The Hugging Face directory meant by `source`, and what to call it; without `weights` they may not be in it."""
    if source == "organism":
        path = data_path("organism")
    elif not str(source).strip():
        raise MnemoError("the model's name is empty: give a directory, a hub name or 'organism'")
    else:
        check_place(source, home=True)
        path = Path(source).expanduser()
    if path.is_dir():
        inner = path / "model"
        found = inner if inner.is_dir() and not (path / "config.json").exists() else path
        return found, _called(found)
    if path.exists():
        raise InputError("is a file: give the directory that holds config.json and weights", file=path)
    if isinstance(source, Path) or not is_hub_name(source, bare=True):
        raise InputError("no such directory: check the path", file=path)
    return _download(source, weights=weights), source


def _called(folder: Path) -> str:
    """The name of a model's directory, or of the study folder around it."""
    folder = folder.resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def _download(name: str, *, weights: bool) -> Path:
    """The local copy of a model on the hub: configuration first, so that what is refused is not fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    repository, _, revision = name.partition("@")

    def fetch(patterns: list[str]) -> Path:
        # "*" takes in "/" too; folders inside a repository hold other formats of the same weights.
        folder = snapshot_download(
            repository, revision=revision or None, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
        return Path(folder)

    try:
        folder = fetch(["*.json", "*.txt", "*.model"])
        examine(folder)
        if not weights:
            return folder
        index = folder / "model.safetensors.index.json"
        shards = _shards(index) if index.exists() else {"model.safetensors"}
        return fetch(["*.json", "*.txt", "*.model", *sorted(shards)])
    except MnemoError:
        raise
    except GatedRepoError as error:
        reason, cause = "is gated: accept its terms on its page, then log in with `hf auth login`", error
    except RepositoryNotFoundError as error:
        reason, cause = "is neither a directory here nor a model on the hub: check the spelling", error
    except (LocalEntryNotFoundError, ConnectionError) as error:
        reason = "is no directory here, and the hub cannot be reached (offline?): give a local directory"
        cause = error
    except Exception as error:
        # The hub's client raises errors of its HTTP library, of the file system and its own.
        reason, cause = f"cannot be fetched from the hub: {first_line(error)}", error
    raise MnemoError(f"{name!r} {reason}") from cause


def read_model(folder: Path, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model of a Hugging Face directory, in `dtype` or as it was saved; whole, or refused.

    Raises:
        MnemoError: the configuration, the weights or their format is none that mnemo takes.
    """
    from transformers import AutoModelForCausalLM

    examine(folder)
    _require_safetensors(folder)
    with in_one_line(f"{folder}: the model cannot be read", fix="save it again with save_pretrained"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="eager",
            dtype=dtype or "auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, with the weight's name
        )
    hf, report = loaded
    wrong = [f"{name} {tuple(is_)} for {tuple(due)}" for name, is_, due in sorted(report["mismatched_keys"])]
    wrong += sorted(report["missing_keys"])
    if wrong:
        more = f" and {len(wrong) - 2} more" if len(wrong) > 2 else ""
        raise InputError(
            f"weights are missing or of another shape than config.json says ({', '.join(wrong[:2])}{more}) "
            "and would be random: save the whole model again with save_pretrained",
            file=folder,
        )
    return hf


def _shards(index: Path) -> set[str]:
    """The files that the weights of a model lie in, which are names and no paths."""
    shards = read_json(index).get("weight_map")
    names = set(map(str, shards.values())) if isinstance(shards, dict) else set()
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        problem = "should name the .safetensors file beside it that holds each weight: save the model again"
        raise InputError(problem, file=index, column="weight_map")
    return names


def _require_safetensors(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        _shards(index)
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
    if not pickled:
        problem = "holds no model.safetensors, and weights are read from nothing else: give a model that has it"
        raise InputError(problem, file=folder)
    raise InputError(
        f"holds only pickled weights ({pickled[0]}), which can run code when read: if you trust them, "
        "convert them once with model.save_pretrained(folder, safe_serialization=True), and load that folder",
        file=folder,
    )


def examine(folder: Path) -> None:
    """Refuse by its configuration what cannot be loaded, or not safely."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = folder / "config.json"
    if (folder / "adapter_config.json").exists():  # which transformers would apply without a word
        what = "holds a LoRA adapter" if file.exists() else "holds a LoRA adapter alone"
        raise InputError(
            f"{what} (adapter_config.json): merge it into its model first (merge_and_unload) and save that, or take "
            "it out of this folder",
            file=folder,
        )
    if not file.exists():
        raise InputError("holds no config.json: give a model's directory", file=folder)
    config = read_json(file, most=_MAX_CONFIG)
    _refuse_code(config, file)
    if config.get("quantization_config"):
        raise InputError(
            "the weights are quantised, so what heads write cannot be computed from them: use the full model",
            file=file,
        )

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        problem = f"transformers knows no model type {kind!r}: use another model, or a newer transformers"
        raise InputError(problem, file=file, column="model_type")
    _check_sizes(config, CONFIG_MAPPING[kind].attribute_map, file)
    # Without "architectures", transformers goes by the type.
    default = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind, kind)
    named = config.get("architectures") or [default]
    architectures = [str(name) for name in named] if isinstance(named, list) else [shown(str(named))]
    if config.get("is_encoder_decoder") or not _causal(architectures):
        raise InputError(
            f"{', '.join(architectures)} is no causal language model: use one that predicts the next token "
            "from those before, such as GPT2LMHeadModel or LlamaForCausalLM",
            file=file,
            column="architectures",
        )


def _check_sizes(config: dict[str, Any], called: dict[str, str], file: Path) -> None:
    """Refuse numbers of layers, heads and so on that no model has; `called` says how this model's type names them."""
    inner = config.get("text_config")
    for part in (config, inner if isinstance(inner, dict) else {}):
        for name, most in _MOST.items():
            for key in {name, called.get(name, name)}:
                size = part.get(key)
                if isinstance(size, int) and not 1 <= size <= most:
                    given = size if abs(size) < 10**20 else "a number of more than 20 digits"
                    raise InputError(f"{given}, where a model has from 1 to {most:,}", file=file, column=key)


def _refuse_code(config: dict[str, Any], file: Path) -> None:
    if "auto_map" in config:
        raise InputError(
            "asks for Python code that comes with the model, which mnemo never runs: use a model whose class "
            "is part of transformers (if this one's is, take auto_map out)",
            file=file,
            column="auto_map",
        )


def _causal(names: Sequence[str]) -> str | None:
    """The first of `names` that is a causal language model of transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    return next((name for name in names if name in KNOWN.values()), None)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a Hugging Face directory, which spells as its tokenizer.json says.

    Raises:
        MnemoError: there is none, or it cannot be read.
        ModelCheckError: transformers makes another tokenizer of it.
    """
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).exists() for name in _VOCABULARIES):
        raise InputError("holds no tokenizer: add its tokenizer.json, or give tokenizer=", file=folder)
    file = folder / "tokenizer_config.json"
    config = read_json(file) if file.exists() else {}
    _refuse_code(config, file)
    # The declared class, not AutoTokenizer's choice: for some model types (qwen2) that is its own class,
    # which reads a custom vocabulary as bytes.
    kind: Any = PreTrainedTokenizerFast if config.get("tokenizer_class") in _AS_WRITTEN else AutoTokenizer
    what = f"{folder}: the tokenizer cannot be read"
    with without_panic_reports(), in_one_line(what, fix="save it again, or give tokenizer="):
        tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        written = folder / "tokenizer.json"
        if written.exists():
            check_spelling(tokenizer, Tokenizer.from_file(str(written)), file=written)
        tokenizer.encode("a")  # with what its template puts in front, which may name a token that there is none of
    return tokenizer


def twin_of(hf: Any, dtype: torch.dtype | None) -> tuple[PreTrainedModel, str]:
    """A copy of a model's modules that shares its weights.

    A bridge rebuilds the module tree in place, after which a model can no longer be saved, copied or
    bridged again without nesting; so it gets a tree of its own.
    """
    from transformers import PreTrainedModel

    kind = type(hf).__name__
    if not isinstance(hf, PreTrainedModel):
        raise MnemoError(
            f"load takes a directory, a hub name or a transformers model, and was given {kind}: give the "
            "model itself, not in a bridge; a LoRA model merged with merge_and_unload"
        )
    architecture = _causal([parent.__name__ for parent in type(hf).__mro__])
    if architecture is None or hf.config.is_encoder_decoder:
        raise MnemoError(f"{kind} is no causal language model: give one such as GPT2LMHeadModel")
    if getattr(hf.config, "quantization_config", None) is not None or getattr(hf, "is_quantized", False):
        raise MnemoError(f"{kind} is quantised, so what heads write cannot be computed: use the full model")
    places = {str(place) for place in (getattr(hf, "hf_device_map", None) or {}).values()}
    places |= {str(weight.device) for weight in hf.parameters()}
    if len(places) > 1:
        raise MnemoError(
            f"{kind} is spread over {', '.join(sorted(places - {'meta'}))} (accelerate's device_map), but gradients "
            "and patches need it on one device: load it without device_map, as torch.bfloat16 if it is too large"
        )
    if any("_original_component" in name for name, _ in hf.named_parameters()):
        raise MnemoError(f"{kind} was rebuilt by a transformer-lens bridge: give it as it was before that")

    def shared(weight: nn.Parameter) -> nn.Parameter:
        return nn.Parameter(weight.detach().to(dtype or weight.dtype), requires_grad=False)

    with in_one_line(f"{kind} cannot be copied", fix="save it and load the directory"):
        twin = copy.deepcopy(hf, {id(weight): shared(weight) for weight in hf.parameters()})
        twin.config.architectures = [architecture]  # transformers fills this in only on saving
        twin.set_attn_implementation("eager")  # others show no attention pattern
    return twin, _called(Path(hf.config.name_or_path)) if hf.config.name_or_path else kind
