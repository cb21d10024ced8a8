"""What the stream is read as behind a component, and where a head looks: all that is said of a selected node."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from mnemo.concept_readers import reader_for
from mnemo.concepts import REFERENCES, Others, ReadsConcepts
from mnemo.errors import MnemoError
from mnemo.explorer.interventions import Bench
from mnemo.explorer.places import Place
from mnemo.lenses import Lens
from mnemo.patching import Site, read_stream

if TYPE_CHECKING:
    import torch

SHOWN = 5  # tokens of a distribution
PHRASES = 4  # concepts read from a state


class Readings:
    """Reads the states of one study's facts, each once.

    Args:
        bench: runs the study's model.
    """

    def __init__(self, bench: Bench) -> None:
        self.bench, self.study, self.model = bench, bench.study, bench.model
        self._phrases: dict[tuple[str, Site], list[dict[str, Any]]] = {}
        self._tokens: dict[tuple[str, Site], list[dict[str, Any]]] = {}
        self._patterns: dict[tuple[str, int], torch.Tensor] = {}

    def attention(self, fact_id: str, place: Place) -> list[float]:
        """Return how a head at its position attends to each token of the prompt; weights add up to 1.

        All heads of a layer together: their mean.
        """
        layer = place.component.layer
        if (fact_id, layer) not in self._patterns:
            hook = f"blocks.{layer}.attn.hook_pattern"
            self._patterns[fact_id, layer] = self.bench.values([self.study.prompt(fact_id)], [hook])[hook][0]
        return self._patterns[fact_id, layer][place.heads or slice(None), place.position].mean(0).tolist()

    def tokens(self, fact_id: str, places: Sequence[Place]) -> list[list[dict[str, Any]]]:
        """Return the tokens that the stream would bring, had the model ended after each place's block (logit lens).

        (nostalgebraist 2020; early layers are often illegible to it, which says nothing about their use.)
        """
        sites = [Site(place.stream_layer, place.position) for place in places]
        unread = sorted({site for site in sites if (fact_id, site) not in self._tokens})
        if unread:
            self._tokens |= {
                (fact_id, site): said for site, said in zip(unread, self._lens(fact_id, unread), strict=True)
            }
        return [self._tokens[fact_id, site] for site in sites]

    def _lens(self, fact_id: str, sites: Sequence[Site]) -> list[list[dict[str, Any]]]:
        prompt, end = self.study.prompt(fact_id), self.model.n_layers
        positions = sorted({site.position for site in sites})
        stream = read_stream(self.model, [prompt], positions=positions)[0]
        states = stream[[site.layer for site in sites], [positions.index(site.position) for site in sites]]
        tokens, probabilities = Lens(self.model, prompt).likeliest(states, layer=end, most=SHOWN)
        return [
            [{"token": t.strip() or repr(t), "p": p} for t, p in zip(self.model.tokens.pieces(row), said, strict=True)]
            for row, said in zip(tokens.tolist(), probabilities.tolist(), strict=True)
        ]

    def phrases(self, fact_id: str, place: Place) -> list[dict[str, Any]]:
        """Return the concepts that the stream is read as behind a place's block, the clearest first.

        At the waypoint they are those that the study judged; elsewhere they are read in the same way, against the
        states of up to `REFERENCES` other facts. Empty where nothing can be read.
        """
        site = Site(place.stream_layer, place.position)
        if (fact_id, site) not in self._phrases:
            waypoint = self.study.waypoint
            if waypoint is not None and site == waypoint.site and fact_id in self.study.readings:
                readings = self.study.readings[fact_id]
            else:
                readings = self._read(fact_id, site)
            self._phrases[fact_id, site] = [{"phrase": r.phrase, "ratio": r.ratio} for r in readings[:PHRASES]]
        return self._phrases[fact_id, site]

    def _read(self, fact_id: str, site: Site) -> list[Any]:
        prompt = self.study.prompt(fact_id)
        try:
            others, reader = self.bench.others(fact_id, len(prompt)), self._reader
        except MnemoError:  # nothing to compare with, or a template that cannot be used
            return []
        if reader is None:
            return []
        others = dict(islice(others.items(), REFERENCES))
        states = read_stream(self.model, [prompt, *others.values()], positions=[site.position])[:, site.layer, 0]
        facts = [self.study.fact(name) for name in (fact_id, *others)]
        return reader.read(states[:1], layer=site.layer, facts=facts[:1], others=Others(states[1:], facts[1:]))[0]

    @cached_property
    def _reader(self) -> ReadsConcepts | None:
        """What the study read with; None where its task has nothing to read with."""
        reader, _ = reader_for(self.model, self.study.task, facts=list(self.study.recalled_facts().values()))
        return reader
