"""What else facts could be ranked by: baselines that stand beside the verdicts' score.

Each is a number for every fact, higher where the baseline takes it for more mnemonic. They get what mnemo gets: the
concepts that were read, and the waypoint that was found.

* verbalisation: how clearly the concept is read at the waypoint, whether it is used or not;
* logit lens, Jacobian lens: probability of the concept's first token at the cue's last token, in the layer where it is
  largest;
* whole-state swap: share of trials in which the state of a cue that evokes another concept, put in at the waypoint,
  brings that concept's answer;
* naive swap, layer by layer: share of trials in which (mean state of another concept's cues - mean state of the own
  concept's cues) does, with the tested fact in the mean and no control;
* attribution: share of the effect of the cue that is attributed to the state at the waypoint.

Agreement, which never looks inside, is a column of the verdicts themselves.
"""

from __future__ import annotations

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.concept_vectors import agrees, ask_concepts, choose_targets
from mnemo.lenses import Lens
from mnemo.model import Model
from mnemo.patching import Patch, Site, ask, read_stream
from mnemo.prompts import Prompt
from mnemo.study import Study

TARGETS = 6


def baselines(study: Study, *, seed: int = 0) -> pd.DataFrame:
    """Return `fact_id` and a column for each baseline; facts that were not judged are left out."""
    table = study.table[study.table["recalled"] & study.table["concept"].notna()]
    if study.waypoint is None or study.task.concept_recall is None or table.empty:
        return pd.DataFrame({"fact_id": table["fact_id"]})
    model, site = study.model, study.waypoint.site
    prompts = [study.prompt(fact_id) for fact_id in table["fact_id"]]
    streams = read_stream(model, prompts, positions=[site.position])[:, :, 0]
    known = ask_concepts(model, study.task.concept_recall, phrases=table["concept"], as_after=prompts[0])
    rank = {phrase: i for i, phrase in enumerate(known.phrases)}
    concepts = torch.tensor([rank.get(phrase, -1) for phrase in table["concept"]])
    answers = ask(model, prompts, tokens=torch.zeros(len(prompts), 1, dtype=torch.long)).top
    agree = agrees(answers, concepts, table=known)
    support = torch.bincount(concepts[agree], minlength=len(known))
    targets = choose_targets(known, support, answers=answers, concepts=concepts, n_targets=TARGETS, seed=seed)

    contexts = torch.where(agree, concepts, -1)
    clearest = table["concept_score"].fillna(table["runner_up_score"])  # where the concept itself was not read
    found: dict[str, Tensor] = {"verbalisation": torch.tensor(clearest.to_numpy(dtype=float))}
    first = torch.tensor([known.prompts[c].tokens[known.prompts[c].span[0]] if c >= 0 else 0 for c in concepts])
    found |= {name: torch.where(concepts >= 0, p, 0) for name, p in _lenses(model, prompts, streams, first).items()}
    donors = _first_of(contexts, targets)
    found["whole-state swap"] = _share(
        model, prompts, site, streams[:, site.layer][donors.clamp(min=0)], targets.where(donors >= 0, -1), known.answers
    )
    for layer in range(1, model.n_layers):
        states = streams[:, layer]
        means = _means(states, contexts, len(known))
        moved = states[:, None] + means[targets.clamp(min=0)] - means[concepts.clamp(min=0)][:, None]
        here = Site(layer, site.position)
        found[f"naive swap {layer}"] = _share(model, prompts, here, moved, targets, known.answers)
    result = pd.DataFrame({"fact_id": table["fact_id"], **{name: value.numpy() for name, value in found.items()}})
    if study.attributions is not None:
        scores = study.attributions
        effect = scores["metric_clean"] - scores["metric_corrupt"]
        share = scores["residual"].sel(stream_layer=site.layer, position=site.position) / effect
        result["attribution"] = result["fact_id"].map(dict(zip(share.fact.values.tolist(), share.values, strict=True)))
    return result


def _lenses(
    model: Model, prompts: list[Prompt], streams: Float[Tensor, "fact layer d"], first: Int[Tensor, " fact"]
) -> dict[str, Float[Tensor, " fact"]]:
    """Largest probability over the layers of each fact's token, read by either lens."""
    lenses = {"logit lens": Lens(model, prompts[0]), "Jacobian lens": Lens.fitted(model, prompts)}

    def largest(lens: Lens) -> Float[Tensor, " fact"]:
        layers = range(1, model.n_layers)
        return torch.stack([lens.of_tokens(first, streams[:, layer], layer=layer) for layer in layers]).amax(0)

    return {name: largest(lens) for name, lens in lenses.items()}


def _share(
    model: Model,
    prompts: list[Prompt],
    site: Site,
    states: Float[Tensor, "fact target d"],
    targets: Int[Tensor, "fact target"],
    answers: Int[Tensor, " concept"],
) -> Float[Tensor, " fact"]:
    """Share of each fact's trials that give the target's answer; 0 without a trial."""
    row, column = (targets >= 0).nonzero(as_tuple=True)
    wanted = answers[targets[row, column]]
    top = ask(
        model, [prompts[i] for i in row.tolist()], tokens=wanted[:, None], patch=Patch(site, states[row, column])
    ).top
    hits = torch.zeros(targets.shape).index_put((row, column), (top == wanted).float())
    return hits.sum(1) / (targets >= 0).sum(1).clamp(min=1)


def _first_of(contexts: Int[Tensor, " fact"], concepts: Int[Tensor, "fact target"]) -> Int[Tensor, "fact target"]:
    """The first fact that is a context of each concept, -1 where there is none."""
    same = (contexts == concepts[..., None]) & (concepts[..., None] >= 0)
    return torch.where(same.any(-1), same.long().argmax(-1), -1)


def _means(states: Float[Tensor, "fact d"], contexts: Int[Tensor, " fact"], n: int) -> Float[Tensor, "concept d"]:
    counted = contexts >= 0
    sums = torch.zeros(n, states.shape[1]).index_add_(0, contexts[counted], states[counted])
    return sums / torch.bincount(contexts[counted], minlength=n).clamp(min=1)[:, None]
