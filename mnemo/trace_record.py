"""What a trace stores, and how a file of one is checked: nothing in it is believed unread.

The JSON schema is `TraceRecord.model_json_schema()`. Components are called ``embed``, ``L2H1`` (layer 2, head 1),
``MLP3`` and ``logits``; positions count from the end of the prompt (-1 is its last token); values are in logits.
"""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from mnemo.checked import MOST_HEADS, MOST_LAYERS

Component = Annotated[str, StringConstraints(pattern=r"^(embed|logits|MLP\d{1,4}|L\d{1,4}H\d{1,4})$")]
Slot = Literal["q", "k", "v"]
Position = Annotated[int, Field(le=-1)]
_NAME = re.compile(r"(?:MLP|L)(\d+)(?:H(\d+))?")
_CLOSE = 1e-6  # of shares and sums that a file must have right


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


def _layer(component: str) -> int | None:
    match = _NAME.fullmatch(component)
    return int(match[1]) if match else None


def _head(component: str) -> int | None:
    match = _NAME.fullmatch(component)
    return int(match[2]) if match and match[2] else None


class _Placed(_Part):
    """A component by name, and the position where it writes."""

    component: Component
    position: Position

    @property
    def layer(self) -> int | None:
        return _layer(self.component)

    @property
    def head(self) -> int | None:
        return _head(self.component)


class TraceStep(_Placed):
    """A component on a path.

    Attributes:
        slot: for a head, whether it reads the step before as query, key or value.
        token: for ``embed``, the token.
    """

    slot: Slot | None = None
    token: str | None = None

    @property
    def text(self) -> str:
        """The step as it is shown: ``V@-4``, ``L0H2.v@-2``, ``MLP1@-2``."""
        if self.token is not None:
            return f"{self.token.strip() or repr(self.token)}@{self.position}"
        return f"{self.component}{'.' + self.slot if self.slot else ''}@{self.position}"


class TracedPath(_Part):
    """A path from a token to the logits, what it carries, and its share of the whole."""

    steps: tuple[TraceStep, ...] = Field(min_length=2)
    value: float
    share: float

    @property
    def text(self) -> str:
        """The path as it is shown everywhere, ``V@-4 -> L0H2.v@-2 -> MLP1@-2 -> logits@-1``."""
        return " -> ".join(step.text for step in self.steps)

    @model_validator(mode="after")
    def _from_a_token_to_the_logits(self) -> TracedPath:
        kinds = [step.component for step in self.steps]
        if kinds[0] != "embed" or kinds[-1] != "logits" or {"embed", "logits"} & set(kinds[1:-1]):
            raise ValueError("a path goes from embed to logits")
        layers = [step.layer for step in self.steps[1:-1]]
        if any(a is None or b is None or a > b for a, b in pairwise(layers)):
            raise ValueError("the layers of a path never fall")
        if any(a.position > b.position for a, b in pairwise(self.steps)):
            raise ValueError("the positions of a path never fall")
        return self


class TracedNode(_Placed):
    """What all paths through a component at a position carry together."""

    value: float
    share: float


class TracedEdge(_Part):
    """What all paths over an edge carry together: from `writer` at `source` into `reader` at `position`."""

    writer: Component
    reader: Component
    slot: Slot | None = None
    source: Position
    position: Position
    value: float
    share: float


class TracedStream(_Part):
    """What all paths through the residual stream after `stream_layer` blocks carry together at a position."""

    stream_layer: Annotated[int, Field(ge=0)]
    position: Position
    value: float
    share: float


class TraceRecord(_Part):
    """Everything that a trace stores.

    Attributes:
        fact_id, cue, answer: the fact.
        contrast_id, contrast_cue, contrast_answer: the fact that it is compared with.
        prompt, corrupt_prompt: what the model was given in the clean and in the corrupt run.
        tokens, pieces: the clean prompt, as ids and as readable pieces.
        corrupt_tokens, corrupt_pieces: the corrupt one.
        answer_token, contrast_answer_token: the tokens whose logits are compared.
        predicted: the token that the model prefers after the clean prompt.
        metric_clean, metric_corrupt: logit(answer) - logit(contrast answer) in the two runs.
        total: metric_clean - metric_corrupt, which is explained.
        conserved: how far all paths together are from `total`, as a share of it.
        quadrature_error: what the quadrature of all components got wrong, as absolute values together, as a share;
            that of the MLPs was mended, the rest is what `conserved` says.
        quadrature_nodes: nodes of the quadrature.
        n_layers, n_heads: of the model.
        node_rows, stream_rows, edge_rows: ``nodes``, ``streams`` and ``edges`` in the file.
        paths: the strongest first.
        seed: what drew the contrast.
        model_name, fingerprint, dtype: the model; None for a dtype that older files do not say.
        versions: of what computed the trace.
        command: the command, as it can be typed again.
        source: where `task`, `facts` and `model` were read from; None for what lies nowhere.
    """

    format: Literal["mnemo trace 1"] = "mnemo trace 1"
    fact_id: str
    cue: str
    answer: str
    contrast_id: str
    contrast_cue: str
    contrast_answer: str
    prompt: str
    corrupt_prompt: str
    tokens: tuple[int, ...] = Field(min_length=1)
    pieces: tuple[str, ...]
    corrupt_tokens: tuple[int, ...]
    corrupt_pieces: tuple[str, ...]
    answer_token: str
    contrast_answer_token: str
    predicted: str
    metric_clean: float
    metric_corrupt: float
    total: float
    conserved: float = Field(ge=0)
    quadrature_error: float = Field(ge=0)
    quadrature_nodes: int = Field(ge=1)
    n_layers: int = Field(ge=1, le=MOST_LAYERS)
    n_heads: int = Field(ge=1, le=MOST_HEADS)
    node_rows: tuple[TracedNode, ...] = Field(alias="nodes")
    stream_rows: tuple[TracedStream, ...] = Field(alias="streams")
    edge_rows: tuple[TracedEdge, ...] = Field(alias="edges")
    paths: tuple[TracedPath, ...]
    seed: int
    model_name: str
    fingerprint: str
    dtype: str | None = None
    versions: dict[str, str | None]
    command: str | None = None
    source: dict[str, str | None] = Field(default_factory=dict, max_length=3)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> TraceRecord:
        length = len(self.tokens)
        if not length == len(self.pieces) == len(self.corrupt_tokens) == len(self.corrupt_pieces):
            raise ValueError("tokens, pieces, corrupt_tokens and corrupt_pieces have different lengths")
        if self.total == 0 or not math.isclose(
            self.total, self.metric_clean - self.metric_corrupt, rel_tol=_CLOSE, abs_tol=1e-12
        ):
            raise ValueError("total is not metric_clean - metric_corrupt, or is zero")
        for row in (*self.node_rows, *self.stream_rows, *self.edge_rows, *self.paths):
            if not math.isclose(row.share * self.total, row.value, rel_tol=_CLOSE, abs_tol=1e-12):
                raise ValueError(f"a share of {row.share:.4g} is not the value {row.value:.4g} over the total")
        self._check_places(length)
        return self

    def _check_places(self, length: int) -> None:
        steps = [step for path in self.paths for step in path.steps]
        for step in (*steps, *self.node_rows):
            self._check_component(step.component)
        for edge in self.edge_rows:
            self._check_component(edge.writer)
            self._check_component(edge.reader)
        positions = [row.position for row in (*steps, *self.node_rows, *self.stream_rows, *self.edge_rows)]
        positions += [edge.source for edge in self.edge_rows]
        if positions and min(positions) < -length:
            raise ValueError(f"position {min(positions)} is before the first of {length} tokens")
        if any(stream.stream_layer > self.n_layers for stream in self.stream_rows):
            raise ValueError(f"there is no stream after more than {self.n_layers} blocks")
        for step in steps:
            if (step.token is not None) != (step.component == "embed"):
                raise ValueError("a step has a token if and only if it is embed")
            if step.token is not None and step.token != self.pieces[step.position]:
                raise ValueError(f"the token at {step.position} is {self.pieces[step.position]!r}, not {step.token!r}")

    def _check_component(self, name: str) -> None:
        layer, head = _layer(name), _head(name)
        if (layer or 0) >= self.n_layers or (head or 0) >= self.n_heads:
            raise ValueError(f"{name} is no component of a model with {self.n_layers} layers of {self.n_heads} heads")
