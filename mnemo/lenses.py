"""Reading single tokens straight out of the residual stream, with the lenses of transformer-lens.

The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens") puts a state through the final norm and the
unembedding as if no block were left. The Jacobian lens (Gurnee et al. 2026, "Verbalizable representations form a global
workspace in language models") first carries it to the last block with the mean Jacobian between the two. Neither asks
the model anything, so they need no template; and neither can read a phrase of several tokens, of which the first alone
is seen.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mnemo.concepts import Others, Reading, draw_references, rank_known
from mnemo.errors import MnemoError
from mnemo.libraries import in_one_line, quietly
from mnemo.memory import checked_budget, fit, in_pieces, memory_budget
from mnemo.phrases import spelled
from mnemo.shape import Shape

if TYPE_CHECKING:
    from transformer_lens.tools.analysis import JacobianLens

    from mnemo.facts import Fact
    from mnemo.model import Model
    from mnemo.prompts import Prompt

CANDIDATES = 16  # words ranked for each state, the likeliest
FITTED = 8  # prompts that the Jacobian is averaged over
COLUMNS = 64  # of a Jacobian, made in one run backward
COPIES = 3  # of every matrix of a Jacobian lens: sum, one prompt's, and mean
READOUTS = 8  # numbers held at once for each state and token of the vocabulary


@dataclass(frozen=True)
class Lens:
    """Reads states as single tokens.

    A word that several tokens spell (with a space before it and without) is as likely as those of them together.

    Attributes:
        model: the model.
        host: a prompt that phrases would follow, which decides how they are spelled.
        jacobian: what carries a state to the last block; None for the logit lens, which leaves it as it is.
    """

    model: Model
    host: Prompt
    jacobian: JacobianLens | None = None

    @classmethod
    def fitted(cls, model: Model, prompts: Sequence[Prompt], *, layers: Sequence[int] | None = None) -> Lens:
        """Fit the Jacobian lens to up to FITTED of some prompts, spread evenly.

        It takes d_model / COLUMNS runs backward of each, with COLUMNS copies of the prompt (fewer where memory is
        short). All positions of a prompt but the last count.

        Args:
            model: the model.
            prompts: the prompts.
            layers: of the residual stream that will be read (1 is behind the first block); None for all.

        Raises:
            MnemoError: the library cannot fit it to this model, or its matrices alone take more than the memory budget.
        """
        from transformer_lens.tools.analysis import JacobianLens

        fitted = prompts[:: max(1, len(prompts) // FITTED)][:FITTED]
        blocks = None if layers is None else [layer - 1 for layer in layers if layer < model.n_layers]
        columns = _columns(model, fitted, n_matrices=model.n_layers - 1 if blocks is None else len(blocks))
        what = f"{model.name}: no Jacobian lens can be fitted"
        # (It warns of short prompts, and study prompts are short.)
        with (
            quietly(),
            in_one_line(what, fix="read with another reader"),
            _spelled_as(model, fitted),
            memory_budget(None),
        ):
            jacobian = JacobianLens.fit(
                model.bridge, [prompt.text for prompt in fitted], corpus="recall prompts", source_layers=blocks,
                skip_first_positions=0, dim_batch=columns, max_seq_len=max(map(len, fitted)), show_progress=False,
            )  # fmt: skip
        return cls(model, prompts[0], jacobian)

    def read(
        self,
        states: Float[Tensor, "fact d"],
        *,
        layer: int,
        facts: Sequence[Fact],
        seed: int = 0,
        others: Others | None = None,
    ) -> list[list[Reading]]:
        """Return, for each state, the words it may stand for, the best first (see `ReadsConcepts`)."""
        compared = Others(states, facts) if others is None else others
        references, another = draw_references(facts, compared.facts, seed=seed)
        words, _ = self._words
        under = torch.empty(len(references), len(words))
        for rows, said in self._logprobs(compared.states[references], layer=layer):
            under[rows] = said
        found: list[list[Reading]] = []
        for rows, own in self._logprobs(states, layer=layer):
            found += rank_known(words, own, under=under, facts=facts[rows], another=another[rows], most=CANDIDATES)
        return found

    def probabilities(
        self, phrases: Sequence[str], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return the probability of each phrase's first token under the state beside it (see `ReadsConcepts`)."""
        first = {phrase: spelled(self.model, self.host, phrases=[phrase]) for phrase in dict.fromkeys(phrases)}
        rows = [i for i, phrase in enumerate(phrases) if first[phrase]]
        found = torch.full((len(phrases),), torch.nan)
        if rows:
            tokens = torch.tensor([first[phrases[i]][0][0] for i in rows])
            found[rows] = self.of_tokens(tokens, states[rows], layer=layer)
        return found

    def of_tokens(
        self, tokens: Int[Tensor, " row"], states: Float[Tensor, "row d"], *, layer: int
    ) -> Float[Tensor, " row"]:
        """Return the probability of each token under the state beside it."""
        return self._probabilities(states, layer=layer, targets=tokens.to(self.model.device))[:, 0]

    def likeliest(
        self, states: Float[Tensor, "row d"], *, layer: int, most: int
    ) -> tuple[Int[Tensor, "row rank"], Float[Tensor, "row rank"]]:
        """Return the tokens that each state brings, up to `most`, the likeliest first, and their probabilities."""
        most = min(most, self.model.vocab_size)
        best = self._readout(states, layer=layer, return_type="log_probs", top_k=most)
        return best.top_ids.cpu(), best.values.float().cpu().exp()

    @cached_property
    def _words(self) -> tuple[tuple[str, ...], Int[Tensor, " token"]]:
        """All words of the vocabulary, and the place of the one that each token spells; behind them all for none."""
        places: dict[str, int] = {}
        spelled_by: list[int | None] = []
        for token in range(self.model.vocab_size):
            text = self.model.tokens.decode([token]).strip()
            spelled_by.append(places.setdefault(text, len(places)) if any(map(str.isalnum, text)) else None)
        return tuple(places), torch.tensor([len(places) if place is None else place for place in spelled_by])

    def _logprobs(
        self, states: Float[Tensor, "row d"], *, layer: int
    ) -> Iterator[tuple[slice, Float[Tensor, "some word"]]]:
        """Yield, for some rows after the other, the log-probability of every word."""
        words, which = self._words

        def run(rows: slice) -> Tensor:
            said = self._probabilities(states[rows], layer=layer)
            summed = torch.zeros(len(said), len(words) + 1).scatter_add_(1, which.expand_as(said), said)
            return summed[:, :-1].log()

        yield from in_pieces(len(states), fit(READOUTS * 4 * self.model.vocab_size), run=run)

    def _probabilities(self, states: Float[Tensor, "row d"], *, layer: int, **of: Tensor) -> Float[Tensor, "row token"]:
        return self._readout(states, layer=layer, return_type="probs", **of).values.float().cpu()

    def _readout(self, states: Float[Tensor, "row d"], *, layer: int, **chosen: Any) -> Any:
        """What the library reads in states carried to the last block.

        Raises:
            NoMemoryError: there is not memory enough for so many states.
            MnemoError: it cannot read this model.
        """
        from transformer_lens.tools.analysis import logit_readout

        what = f"{self.model.name} cannot be read with a lens"
        with in_one_line(what, fix="read with another reader"), memory_budget(None):
            return logit_readout(self.model.bridge, self._at_the_end(states, layer=layer), **chosen)

    def _at_the_end(self, states: Float[Tensor, "row d"], *, layer: int) -> Float[Tensor, "row d"]:
        states = states.to(self.model.device)
        if self.jacobian is None or layer == self.model.n_layers:
            return states
        if layer - 1 not in self.jacobian.source_layers:
            raise MnemoError(f"this Jacobian lens was not fitted to the stream after {layer} blocks: fit it there")
        return self.jacobian.transport(states, layer - 1)


def _columns(model: Model, prompts: Sequence[Prompt], *, n_matrices: int) -> int:
    """Return how many columns of a Jacobian to make at once, each with a copy of the prompt.

    Raises:
        MnemoError: the memory budget does not hold the matrices themselves.
    """
    held = COPIES * 4 * n_matrices * model.d_model**2 / 1e9
    room = checked_budget(None) - held
    if room <= 0:
        raise MnemoError(
            f"{model.name}: the matrices of a Jacobian lens take {held:.3g} GB, more than may be used "
            f"({checked_budget(None):g} GB): give a larger --memory-gb, or read with another reader"
        )
    shape, length = Shape.of(model), max(map(len, prompts))
    each = shape.backward_bytes(length) + shape.reading_bytes(length)  # the library makes logits at every position
    return min(COLUMNS, model.d_model, fit(each, memory_gb=room))


@contextmanager
def _spelled_as(model: Model, prompts: Sequence[Prompt]) -> Generator[None]:
    """Let the library take prompts by their own tokens: it takes texts alone, and its `to_tokens` minds no `bos`."""
    tokens = {prompt.text: prompt.tokens for prompt in prompts}
    bridge: Any = model.bridge
    bridge.to_tokens = lambda text: torch.tensor([tokens[text]], device=model.device)  # hides the method of its class
    try:
        yield
    finally:
        del bridge.to_tokens
