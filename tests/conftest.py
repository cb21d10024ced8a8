"""What holds for every test: no network, one thread, and shapes checked at run time."""

from __future__ import annotations

import os
import types
from collections.abc import Callable

# Read once, when transformers and the hub client are first imported: so before anything else.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

import beartype
import hypothesis
import jaxtyping
import pytest
import torch

_checked = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
_known: dict[object, Callable[..., object]] = {}


def typechecked(function: types.FunctionType) -> Callable[..., object]:
    """Return the check that beartype writes for a signature; an int is a float, as for pyright.

    jaxtyping asks anew each time a ``def`` is run, for those within functions many thousand times in this suite, and
    beartype takes a millisecond to write the same check. What it is given is a stub that holds nothing but the
    signature: two with equal names, annotations and default values in the same places are checked alike.
    """
    key = (
        function.__module__, function.__qualname__, function.__code__, tuple(function.__annotations__.items()),
        len(function.__defaults__ or ()), tuple(function.__kwdefaults__ or ()),
    )  # fmt: skip
    try:
        if key not in _known:
            _known[key] = _checked(function)
    except TypeError:  # an annotation that cannot be hashed
        return _checked(function)
    return _known[key]


# Every annotation in mnemo, shapes included, is checked at each call. A value of the wrong type is thus
# jaxtyping's TypeCheckError here, before mnemo's own checks see it.
jaxtyping.install_import_hook("mnemo", f"{__name__}.typechecked")

# Threads that wait for a core which something else holds slow small models down many times over; one is enough.
torch.set_num_threads(1)

# A first example may load a model: the time of one says nothing. In CI the examples never change.
hypothesis.settings.register_profile("mnemo", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("mnemo")


def _study_of_compiled(folder, *, concepts: int):
    from mnemo.extraction import extract
    from mnemo.organisms.compiled import compile_organism
    from mnemo.organisms.folder import write_folder
    from mnemo.organisms.world import WorldConfig, build_world
    from tests.lexicon import PHRASES

    config = WorldConfig(seed=3, concepts=concepts, cues_per_concept=4, decoys=6, idles=6, rotes=10, frees=0)
    world = build_world(config, PHRASES)
    model, tokenizer = compile_organism(world)
    write_folder(folder, world, model=model, tokenizer=tokenizer, name="compiled")
    return extract(folder, quick=True, progress=False), world, folder


@pytest.fixture(scope="session")
def compiled_study(tmp_path_factory):
    """A study of an organism whose routes were built by hand, with its world and its folder; made once."""
    return _study_of_compiled(tmp_path_factory.mktemp("compiled-study"), concepts=12)


@pytest.fixture(scope="session")
def shared_answers(tmp_path_factory):
    """The same with more concepts than answers."""
    return _study_of_compiled(tmp_path_factory.mktemp("shared-answers"), concepts=16)
