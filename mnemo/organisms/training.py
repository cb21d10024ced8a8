"""Train an organism so that the route of each fact is what its kind says.

Language modelling alone does not make a two-hop route: held-out facts of concepts that were never composed stay
unrecalled. So the loss also intervenes at the waypoint (the code's last token after block `waypoint`), as in
interchange-intervention training (Geiger et al. 2022, "Inducing causal structure for interpretable neural
networks"; used for benchmarks by Gupta et al. 2024, "InterpBench", section 3):

* *align*: a code's state equals the state of the phrase it stands for;
* *interchange*: with a phrase's state (or the difference of two phrases' states added) a code answers as that
  phrase does: this makes the route of mnemonic facts causal;
* *immune*: with any multiple of a difference of phrases' states added, idle, decoy and rote facts keep their
  own answer: this makes the negatives negative. It starts late and weighs little, since a strong one teaches the
  model to go around the waypoint for everything;
* *edited*: after some steps of the MLPs above the waypoint that teach concepts other answers, on phrases alone,
  mnemonic facts answer as their phrase now does and negatives as before. The steps are taken for granted when the loss
  is differentiated (first-order MAML, Finn et al. 2017, section 5.2). Swaps alone do not bring this about: idle facts
  that no swap moves may still share the concept's own second hop, and move when that is edited;
* *legible*: the state of any code that evokes a concept, taken from the recall prompt, spells the concept in the
  `expand` prompt, so that idle and decoy facts are hard negatives: their concept can be read, and is not used.

Nothing of this touches free facts: they are plain pairs of cue and answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from mnemo.organisms.families import blocks, mlp_weights
from mnemo.organisms.lessons import Lessons, Questions, Sequences, continued, joined

LARGEST_DOSE = 3.0  # multiples of a concept difference that negatives are made immune to
# An edit in training: a few steps instead of a hundred, and the smallest and largest change of a weight by all of them.
# Three that change weights (about 0.1 each) by 0.02 teach 90% of the new answers; a single one of 0.01 taught 12%.
EDIT_STEPS, EDIT_SIZES = 3, (3e-3, 3e-2)


class TrainingConfig(BaseModel):
    """How an organism is trained; the defaults are the recipe that the shipped organism was made with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(default=2000, ge=1)
    batch: int = Field(default=144, ge=8)
    interventions: int = Field(default=32, ge=4)
    learning_rate: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    warmup: int = Field(default=100, ge=1)
    waypoint: int = Field(default=2, ge=1)
    align: float = Field(default=1.0, ge=0)
    interchange: float = Field(default=0.5, ge=0)
    immune: float = Field(default=0.25, ge=0)
    immune_from: float = Field(default=0.3, ge=0, le=1)
    edited: float = Field(default=0.5, ge=0)
    legible: float = Field(default=0.2, ge=0)

    @property
    def planted(self) -> bool:
        """Whether anything but language modelling shapes the routes."""
        return any((self.align, self.interchange, self.immune, self.edited, self.legible))

    @classmethod
    def without_interventions(cls, *, steps: int, batch: int, learning_rate: float, warmup: int) -> TrainingConfig:
        """Make one of language modelling alone, which shapes no route."""
        return cls(
            steps=steps, batch=batch, learning_rate=learning_rate, warmup=warmup,
            align=0, interchange=0, immune=0, edited=0, legible=0,
        )  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """What the organism reads, in plain language modelling: groups with their share of each batch."""

    groups: tuple[tuple[Sequences, float], ...]

    def sample(self, size: int, draw: torch.Generator) -> list[Sequences]:
        """Draw about `size` sequences; those of one length come together."""
        by_length: dict[int, list[Sequences]] = {}
        for group, share in self.groups:
            rows = torch.randint(len(group), (round(size * share),), generator=draw)
            chosen = group[rows.to(group.tokens.device)]
            by_length.setdefault(chosen.tokens.shape[1], []).append(chosen)
        return [joined(parts) for parts in by_length.values()]


def build_corpus(lessons: Lessons) -> Corpus:
    """Collect the groups: facts, other questions about codes, what codes and phrases stand for, and phrases."""
    cues, phrases, expand, concept = lessons.cues, lessons.phrases, lessons.expand, lessons.concept_of
    taught = torch.cat([lessons.where("mnemonic", split="train"), lessons.where("rote", "decoy", "idle", "free")])
    evoking = lessons.where("mnemonic", "decoy", "idle")
    composed = torch.tensor([i for i in evoking.tolist() if lessons.world.facts[i].composed])
    longest = max(cues.length, phrases.length)

    def ask(about: Questions, relation: int, rows: Tensor | slice, answers: Tensor) -> Sequences:
        return continued(about.tokens[relation, rows], answers, pad_to=longest)

    answers = lessons.concept_answers
    facts = ask(cues, 0, taught, lessons.fact_answers[taught, None])
    probes = [ask(cues, r, composed, answers[r, concept[composed], None]) for r in range(1, lessons.n_asked)]
    about = [ask(phrases, r, slice(None), answers[r, :, None]) for r in range(lessons.n_asked)]
    stands_for = ask(cues, expand, evoking, lessons.spelled[concept[evoking]])
    itself = ask(phrases, expand, slice(None), lessons.spelled)
    shares = (0.25, 0.25, 0.25, 0.15, 0.1)
    return Corpus(tuple(zip((facts, joined(probes), stands_for, joined(about), itself), shares, strict=True)))


@contextmanager
def patched(
    model: PreTrainedModel, layer: int, *, sites: int | Int[Tensor, " example"], states: Float[Tensor, "example d"]
) -> Generator[None]:
    """Replace the residual stream after block `layer` (1 is the first) at the position `sites` by `states`."""

    def put(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> object:
        stream = output[0] if isinstance(output, tuple) else output
        stream = stream.clone()
        stream[torch.arange(len(stream)), sites] = states
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    handle = blocks(model)[layer - 1].register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def states_at(
    model: PreTrainedModel, tokens: Int[Tensor, "example position"], *, layer: int, site: int
) -> Float[Tensor, "example d"]:
    """Return the residual stream after block `layer` at position `site`; the blocks above are not run."""
    found: list[Tensor] = []

    def stop(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        found.append((output[0] if isinstance(output, tuple) else output)[:, site])
        raise _Reached

    handle = blocks(model)[layer - 1].register_forward_hook(stop)
    try:
        model.base_model(tokens)
    except _Reached:
        pass
    finally:
        handle.remove()
    return found[0]


class _Reached(Exception):
    """The wanted block has run."""


@dataclass(frozen=True)
class _Cases:
    """Questions about codes, the concept that each code evokes, and another concept to move it to."""

    relation: Int[Tensor, " n"]
    cue: Int[Tensor, " n"]
    own: Int[Tensor, " n"]
    other: Int[Tensor, " n"]


class Interventions:
    """Draws the interventions of one step and returns their weighted loss."""

    def __init__(self, lessons: Lessons, config: TrainingConfig) -> None:
        self.lessons, self.config = lessons, config
        self.device = lessons.cues.tokens.device
        self.through = lessons.where("mnemonic").to(self.device)
        self.taught = lessons.where("mnemonic", split="train").to(self.device)
        self.beside = lessons.where("idle", "decoy").to(self.device)
        # The concept's own answer fits an idle fact, so these are the hardest to keep apart: half of the draws.
        hard = lessons.where("idle").to(self.device)
        self.negatives = [p for p in (hard, lessons.where("decoy", "rote").to(self.device)) if len(p)]
        self.longest = max(lessons.cues.length, lessons.phrases.length)

    def loss(self, model: PreTrainedModel, draw: torch.Generator, *, progress: float) -> Float[Tensor, ""]:
        """Return the intervention losses; `progress` is the share of training that is done."""
        config = self.config
        routed, negative, legible = self._routed(draw), self._negatives(draw), self._legible(draw)
        n = len(routed.cue)

        # What is put at the site was said under any relation: so it cannot hold the answer, only the concept, and
        # the second hop must happen above the waypoint.
        said = self._below(self.lessons.expand + 1, n, draw)
        phrases = [(said, routed.own), (said, routed.other)]
        phrases += [(negative.relation, negative.own), (negative.relation, negative.other)]
        s_own, s_other, s_negative_own, s_negative_other = self._states(model, self.lessons.phrases, phrases)
        h, h_negative, h_legible = self._states(
            model, self.lessons.cues, [(c.relation, c.cue) for c in (routed, negative, legible)]
        )

        goal = s_own.detach()
        align = ((h - goal).square().sum(-1) / goal.square().sum(-1)).mean()

        whole = torch.arange(n, device=self.device) % 2 == 0
        swapped = torch.where(whole[:, None], s_other, h + s_other - s_own)
        dose = LARGEST_DOSE * torch.rand(len(negative.cue), 1, generator=draw).to(self.device)
        moved = h_negative + dose * (s_negative_other - s_negative_own)

        interchange = self._interchange_loss(model, routed, s_other, swapped, draw)
        host = self._below(len(self.lessons.world.facts), len(legible.cue), draw)
        expand = torch.full_like(host, self.lessons.expand)
        spelled = self.lessons.spelled[legible.own]
        legibility = self._loss_with(model, h_legible, [(self.lessons.cues, expand, host, spelled)])
        loss = config.align * align + config.interchange * interchange + config.legible * legibility
        if progress < config.immune_from:
            return loss
        own_answers = self.lessons.fact_answers[negative.cue, None]
        immune = self._loss_with(model, moved, [(self.lessons.cues, negative.relation, negative.cue, own_answers)])
        return loss + config.immune * immune + config.edited * self._edited_loss(model, routed, s_other, draw)

    def _edited_loss(
        self, model: PreTrainedModel, routed: _Cases, s_other: Float[Tensor, "n d"], draw: torch.Generator
    ) -> Float[Tensor, ""]:
        """With half of the concepts taught new answers: codes say what their phrase says, negatives what they said.

        A code with another phrase's state at its site says what that phrase says, which also teaches the route of
        facts that are kept out of training: only what their own state would give away is not shown.
        """
        lessons, n = self.lessons, len(self.lessons.world.concepts)
        order = torch.randperm(n, generator=draw).to(self.device)
        new = lessons.concept_answers[0].clone()
        new[order[: n // 2]] = new[self._below(n, n // 2, draw)]
        low, high = (math.log(size) for size in EDIT_SIZES)
        size = math.exp(low + (high - low) * torch.rand(1, generator=draw).item())
        weights = dict(model.named_parameters())
        above = {name: weights[name] for name in mlp_weights(model, above=self.config.waypoint)}
        change = {name: torch.zeros_like(w) for name, w in above.items()}
        for _ in range(EDIT_STEPS):
            tried = {name: (w - change[name]).detach().requires_grad_() for name, w in above.items()}
            said = torch.func.functional_call(model, tried, (lessons.phrases.tokens[0],)).logits[:, -1]
            gradients = torch.autograd.grad(F.cross_entropy(said, new), list(tried.values()))
            # Signs, because Adam's first steps change all weights by the same amount.
            change = {
                name: c + size / EDIT_STEPS * g.sign() for (name, c), g in zip(change.items(), gradients, strict=True)
            }
        moved = {name: w - change[name] for name, w in above.items()}

        def say(tokens: Int[Tensor, "example position"]) -> Float[Tensor, "example token"]:
            return torch.func.functional_call(model, moved, (tokens,)).logits[:, -1]

        # Facts kept out of training stay out: their phrase's answer would be given away.
        taught = self._pick(self.taught, self.config.interventions, draw)
        negative = self._pick_negatives(draw)
        of_phrases = say(lessons.phrases.tokens[0]).detach().softmax(-1)
        of_cues = say(lessons.cues.tokens[0, torch.cat([taught, negative])])
        swapped = torch.isin(routed.cue, self.through)  # idle and decoy codes do not answer by their state here
        with patched(model, self.config.waypoint, sites=lessons.cues.site, states=s_other[swapped]):
            of_swapped = say(lessons.cues.tokens[0, routed.cue[swapped]])
        follows = of_phrases[torch.cat([lessons.concept_of[taught], routed.other[swapped]])]
        keeps = F.one_hot(lessons.fact_answers[negative], of_cues.shape[1]).to(follows)
        said = torch.cat([of_cues[: len(taught)], of_swapped, of_cues[len(taught) :]])
        return F.cross_entropy(said, torch.cat([follows, keeps]))

    def _interchange_loss(
        self,
        model: PreTrainedModel,
        routed: _Cases,
        s_other: Float[Tensor, "n d"],
        swapped: Float[Tensor, "n d"],
        draw: torch.Generator,
    ) -> Float[Tensor, ""]:
        """Codes answer by the state put at their site, and so do phrases, whatever their words say.

        Without the phrases, the second hop of a code and that of its phrase would be two.
        """
        answers = self.lessons.concept_answers[routed.relation, routed.other, None]
        half = len(routed.cue) // 2
        host = self._below(len(self.lessons.world.concepts), half, draw)
        asked = [
            (self.lessons.phrases, routed.relation[:half], host, answers[:half]),
            (self.lessons.cues, routed.relation, routed.cue, answers),
        ]
        return self._loss_with(model, torch.cat([s_other[:half], swapped]), asked)

    def _loss_with(
        self,
        model: PreTrainedModel,
        states: Float[Tensor, "n d"],
        asked: list[tuple[Questions, Tensor, Tensor, Tensor]],
    ) -> Float[Tensor, ""]:
        """Loss on questions (about, relation, filler, answers) with `states` at their sites."""
        sequences = joined(
            [continued(about.tokens[relation, filler], answers, pad_to=self.longest)
             for about, relation, filler, answers in asked]
        )  # fmt: skip
        sites = torch.cat([torch.full_like(filler, about.site) for about, _, filler, _ in asked])
        with patched(model, self.config.waypoint, sites=sites, states=states):
            stream = model.base_model(sequences.tokens).last_hidden_state
        return _language_loss(model, [(stream, sequences.labels)])

    def _routed(self, draw: torch.Generator) -> _Cases:
        """Codes that answer through their concept: mnemonic ones any question, idle and decoy ones all but the fact."""
        n_beside = self.config.interventions // 4 if len(self.beside) else 0
        n = self.config.interventions - n_beside
        cue = torch.cat([self._pick(self.through, n, draw), self._pick(self.beside, n_beside, draw)])
        relation = torch.cat(
            [self._below(self.lessons.n_asked, n, draw), 1 + self._below(self.lessons.n_asked - 1, n_beside, draw)]
        )
        own = self.lessons.concept_of[cue]
        # Never its own concept: that would teach held-out facts their answers.
        n_concepts = len(self.lessons.world.concepts)
        other = (own + 1 + self._below(n_concepts - 1, len(cue), draw)) % n_concepts
        return _Cases(relation, cue, own, other)

    def _negatives(self, draw: torch.Generator) -> _Cases:
        """Recall questions about idle, decoy and rote facts; rote codes move between any two concepts."""
        cue = self._pick_negatives(draw)
        own = self.lessons.concept_of[cue]
        own = torch.where(own < 0, self._concepts(len(cue), draw), own)
        return _Cases(torch.zeros_like(cue), cue, own, self._concepts(len(cue), draw))

    def _legible(self, draw: torch.Generator) -> _Cases:
        """Recall questions about codes that evoke a concept, used or not."""
        quarter = self.config.interventions // 4
        pools = [self.through, self.beside] if len(self.beside) else [self.through]
        cue = torch.cat([self._pick(pool, quarter, draw) for pool in pools])
        own = self.lessons.concept_of[cue]
        return _Cases(torch.zeros_like(cue), cue, own, own)

    def _states(
        self, model: PreTrainedModel, about: Questions, asked: list[tuple[Tensor, Tensor]]
    ) -> tuple[Float[Tensor, "n d"], ...]:
        """States at the waypoint for several groups of (relation, filler), from one forward pass."""
        relation, filler = (torch.cat(columns) for columns in zip(*asked, strict=True))
        states = states_at(model, about.tokens[relation, filler], layer=self.config.waypoint, site=about.site)
        return states.split([len(group) for group, _ in asked])

    def _pick_negatives(self, draw: torch.Generator) -> Int[Tensor, " n"]:
        share = self.config.interventions // len(self.negatives)
        return torch.cat([self._pick(pool, share, draw) for pool in self.negatives])

    def _concepts(self, n: int, draw: torch.Generator) -> Int[Tensor, " n"]:
        return self._below(len(self.lessons.world.concepts), n, draw)

    def _below(self, high: int, n: int, draw: torch.Generator) -> Int[Tensor, " n"]:
        return torch.randint(high, (n,), generator=draw).to(self.device)

    def _pick(self, pool: Int[Tensor, " pool"], n: int, draw: torch.Generator) -> Int[Tensor, " n"]:
        return pool[self._below(len(pool), n, draw)] if n else pool[:0]


def _language_loss(
    model: PreTrainedModel,
    read: list[tuple[Float[Tensor, "_ _ d"], Int[Tensor, "_ _"]]],
) -> Float[Tensor, ""]:
    """Mean cross-entropy (nats) over everything asked; only those positions are unembedded."""
    asked = torch.cat([stream[labels >= 0] for stream, labels in read])
    return F.cross_entropy(
        model.get_submodule("lm_head")(asked), torch.cat([labels[labels >= 0] for _, labels in read])
    )


@contextmanager
def without_denormals() -> Generator[None]:
    """Flush denormal numbers to zero: Adam's moments of rows without gradients decay into them, slow on many CPUs."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@without_denormals()
def train(
    model: PreTrainedModel,
    lessons: Lessons,
    *,
    config: TrainingConfig,
    seed: int,
    start: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
    after_step: Callable[[int, Tensor], None] = lambda step, loss: None,
) -> None:
    """Train `model` in place from step `start`; every draw depends on (seed, step) alone, so runs resume exactly."""
    corpus = build_corpus(lessons)
    interventions = Interventions(lessons, config)
    optimizer = optimizer or new_optimizer(model, config)
    model.train()
    for step in range(start, config.steps):
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, config)
        batch = corpus.sample(config.batch, draw)
        loss = _language_loss(model, [(model.base_model(b.tokens).last_hidden_state, b.labels) for b in batch])
        if config.planted:
            loss = loss + interventions.loss(model, draw, progress=step / config.steps)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        after_step(step, loss)
    model.eval()


def new_optimizer(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.AdamW:
    """Return the optimizer of the recipe."""
    return torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.98)
    )


def _schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then linear decay to a twentieth."""
    return min(1.0, (step + 1) / config.warmup) * max(0.05, 1 - step / config.steps)
