"""Is the organism what it claims to be? The measurements behind its data card.

Everything is measured by intervention on the trained model, with the truth at hand; `mnemo extract` never sees it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from mnemo.concept_vectors import ask_concepts
from mnemo.editing import EditConfig, edit_test
from mnemo.model import load
from mnemo.organisms.lessons import Lessons
from mnemo.organisms.training import patched, states_at
from mnemo.prompts import render

TARGETS = 8  # other concepts that each fact is swapped to


def measure(model: PreTrainedModel, lessons: Lessons, *, layer: int, seed: int) -> dict[str, Any]:
    """Return every measurement of an organism whose planted waypoint is after block `layer`."""
    model.eval()
    evoked = expansion(model, lessons)
    evoking = lessons.where("mnemonic", "decoy", "idle")
    came, stayed = swap(model, lessons, layer=layer, seed=seed)
    rows = {kind: lessons.where(kind) for kind in ("mnemonic", "idle", "decoy", "rote", "free")}
    rows = {kind: chosen for kind, chosen in rows.items() if len(chosen)}
    return {
        "recall": recall(model, lessons),
        "expands to its concept": (evoked[evoking] == lessons.concept_of[evoking]).float().mean().item(),
        "swap gives the predicted answer": {kind: came[r].mean().item() for kind, r in rows.items()},
        "swap leaves the answer": {kind: stayed[r].mean().item() for kind, r in rows.items()},
        "left alone by every swap": {kind: stayed[r].amin(1).mean().item() for kind, r in rows.items()},
        "edit follows": edit(model, lessons, layer=layer, seed=seed),
        "invented": invented(model, lessons, evoked=evoked, seed=seed),
    }


@torch.no_grad()
def invented(
    model: PreTrainedModel, lessons: Lessons, *, evoked: Int[Tensor, " fact"], seed: int, shuffles: int = 1000
) -> dict[str, float | None]:
    """Do free facts come with a concept that nobody gave them?

    Returns:
        ``matches``: the share of free facts whose cue the model expands to a concept with the fact's answer, and the
        mean and maximum of that share when answers are shuffled among the free facts; then how often the probes about a
        matching cue get that concept's values, those of other concepts with the same answer, and, for cues that
        do not match, those of the concept they expand to. The keys are always the same, with None where there is
        nothing to average.
    """
    free = lessons.where("free")
    free = free[evoked[free].cpu() >= 0]
    keys = (
        "matches", "shuffled mean", "shuffled max", "probes follow the concept", "probes follow others with the answer",
        "probes follow a concept that does not match",
    )  # fmt: skip
    if not len(free):
        return {**dict.fromkeys(keys), "matches": 0.0 if len(lessons.where("free")) else None}
    draw = torch.Generator().manual_seed(seed)
    answers, concept = lessons.fact_answers[free], evoked[free]
    fitting = lessons.concept_answers[0, concept] == answers
    null = torch.stack(
        [
            (lessons.concept_answers[0, concept] == answers[torch.randperm(len(free), generator=draw)]).float().mean()
            for _ in range(shuffles)
        ]
    )
    probes = torch.stack([_answers(model, lessons.cues.tokens[r, free]) for r in range(1, lessons.n_asked)])
    alike = (probes[:, :, None] == lessons.concept_answers[1:, None, :]).float().mean(0)  # [free, concept]
    own = alike.gather(1, concept[:, None])[:, 0]
    rival = lessons.concept_answers[0][None] == lessons.concept_answers[0, concept][:, None]
    rival[torch.arange(len(free)), concept] = False
    rivals = (alike * rival).sum(1) / rival.sum(1).clamp(min=1)

    def mean(values: Tensor, rows: Tensor) -> float | None:
        return values[rows].mean().item() if rows.any() else None

    found = (
        fitting.float().mean().item() * len(free) / len(lessons.where("free")),
        null.mean().item(),
        null.max().item(),
        mean(own, fitting),
        mean(rivals, fitting & rival.any(1)),
        mean(own, ~fitting),
    )
    return dict(zip(keys, found, strict=True))


@torch.no_grad()
def recall(model: PreTrainedModel, lessons: Lessons) -> dict[str, float]:
    """Return the share of facts whose answer ranks first, for each kind (mnemonic ones by split)."""
    predicted = _answers(model, lessons.cues.tokens[0])
    right = predicted == lessons.fact_answers
    groups = {f"mnemonic {s}": lessons.where("mnemonic", split=s) for s in ("train", "held", "ood")}
    groups |= {kind: lessons.where(kind) for kind in ("shared", "decoy", "idle", "rote", "free")}
    return {name: right[rows].float().mean().item() for name, rows in groups.items() if len(rows)}


@torch.no_grad()
def expansion(model: PreTrainedModel, lessons: Lessons) -> Int[Tensor, " fact"]:
    """Return the index of the concept that the model expands each cue to, -1 where it is none."""
    tokens = lessons.cues.tokens[lessons.expand]
    for _ in range(lessons.spelled.shape[1]):
        tokens = torch.cat([tokens, _answers(model, tokens)[:, None]], 1)
    phrase = tokens[:, lessons.cues.length :]
    same = (phrase[:, None] == lessons.spelled[None]).all(-1)
    return torch.where(same.any(1), same.long().argmax(1), -1)


@torch.no_grad()
def swap(
    model: PreTrainedModel, lessons: Lessons, *, layer: int, seed: int
) -> tuple[Float[Tensor, "fact target"], Float[Tensor, "fact target"]]:
    """Add (other concept - own concept) at the waypoint: did the other's answer come, did the own one stay?

    Concept vectors are means over the mnemonic cues of a concept, the tested fact left out. Facts without a
    concept take a random one as their own.
    """
    draw = torch.Generator().manual_seed(seed)
    site, n_concepts = lessons.cues.site, len(lessons.world.concepts)
    h = states_at(model, lessons.cues.tokens[0], layer=layer, site=site)
    mean, count = _concept_means(h, lessons)
    came, stayed = [], []
    own = torch.where(
        lessons.concept_of >= 0,
        lessons.concept_of,
        torch.randint(n_concepts, lessons.concept_of.shape, generator=draw).to(h.device),
    )
    counted = torch.zeros(len(h), dtype=torch.bool, device=h.device)
    counted[lessons.where("mnemonic")] = True
    n_own = count[own][:, None]
    left_out = torch.where(counted[:, None], (mean[own] * n_own - h) / (n_own - 1).clamp(min=1), mean[own])
    for _ in range(TARGETS):
        other = torch.randint(n_concepts, own.shape, generator=draw).to(h.device)
        answers = lessons.concept_answers[0]
        while (clash := answers[other] == lessons.fact_answers).any():
            other[clash] = torch.randint(n_concepts, (int(clash.sum()),), generator=draw).to(h.device)
        with patched(model, layer, sites=site, states=h + mean[other] - left_out):
            predicted = _answers(model, lessons.cues.tokens[0])
        came.append(predicted == answers[other])
        stayed.append(predicted == lessons.fact_answers)
    return torch.stack(came, 1).float(), torch.stack(stayed, 1).float()


def _concept_means(h: Float[Tensor, "fact d"], lessons: Lessons) -> tuple[Tensor, Tensor]:
    rows = lessons.where("mnemonic").to(h.device)
    mean = torch.zeros(len(lessons.world.concepts), h.shape[1], device=h.device)
    count = torch.zeros(len(mean), device=h.device)
    mean.index_add_(0, lessons.concept_of[rows], h[rows])
    count.index_add_(0, lessons.concept_of[rows], torch.ones(len(rows), device=h.device))
    return mean / count.clamp(min=1)[:, None], count


def edit(model: PreTrainedModel, lessons: Lessons, *, layer: int, seed: int) -> dict[str, float]:
    """Teach the concepts new answers, half of them at a time, on concept prompts and above the waypoint alone.

    Returns:
        for each kind, the share of facts that give the edited answer of their concept (for rote and free facts, which
        have none, the share that give an answer which is not their own, nor taught to a concept that had it).
    """
    config = lessons.world.config
    loaded = load(model, tokenizer=lessons.tokenizer, device=lessons.cues.tokens.device, check=False)
    facts, phrases = lessons.world.facts, [concept.phrase for concept in lessons.world.concepts]
    asked = ask_concepts(loaded, config.concept_recall, phrases=phrases)
    intended = lessons.concept_answers[0].cpu()
    found = edit_test(
        loaded,
        [render(config.recall, fact.cue, tokenizer=loaded.tokens) for fact in facts],
        answers=lessons.fact_answers.cpu(),
        table=replace(asked, answers=intended, said=intended),  # as they should be, also before training
        layer=layer,
        seed=seed,
        keep=[
            render(config.question(r, "{concept}"), p, tokenizer=loaded.tokens)
            for r in lessons.world.relations
            for p in phrases
        ],
        config=EditConfig(rounds=1),
        progress=False,
    )
    by_kind = (
        found.table(lessons.concept_of.cpu(), phrases)[["edit_follows", "edit_control"]]
        .groupby([fact.kind for fact in facts])
        .mean()
    )
    moved = {kind: by_kind["edit_follows"] for kind in ("mnemonic", "decoy", "idle")}
    moved |= {kind: by_kind["edit_control"] for kind in ("rote", "free")}
    return {kind: float(shares[kind]) for kind, shares in moved.items() if kind in shares}


def _answers(model: PreTrainedModel, tokens: Int[Tensor, "prompt position"]) -> Int[Tensor, " prompt"]:
    return model(tokens).logits[:, -1].argmax(-1)
