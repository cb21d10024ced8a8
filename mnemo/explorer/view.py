"""What is shown: which fact, how much of its circuit, what is selected and pinned. Saved and loaded as JSON."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mnemo.errors import InputError, MnemoError, visible
from mnemo.explorer.interventions import Intervention

MAX_CHARACTERS = 2**20  # of a saved view


class View(BaseModel):
    """What the explorer shows.

    Attributes:
        fact: id of the fact shown.
        beside: id of a fact shown beside it, or None.
        least_share: nodes and edges that carry less of the effect (as a share of it) are left out.
        top: how many of the strongest paths are listed and drawn whole.
        group: whether heads stand alone or all those of a layer together.
        pinned: nodes (``MLP1@-2``) shown however weak they are.
        selected: a node (``L2H1@-2``), an edge (``MLP1@-2>logits@-1``), a path (``path 1``) or None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    fact: str = Field(max_length=10_000)
    beside: str | None = Field(default=None, max_length=10_000)
    least_share: Annotated[float, Field(ge=0, le=1)] = 0.02
    top: Annotated[int, Field(ge=1, le=50)] = 10
    group: Literal["head", "layer"] = "head"
    pinned: Annotated[tuple[str, ...], Field(max_length=1000)] = ()
    selected: str | None = Field(default=None, max_length=200)

    def changed(self, **changes: object) -> View:
        """Return the view with some fields changed.

        Raises:
            MnemoError: no such field, or a value that it cannot have.
        """
        try:
            return View.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise MnemoError(first_fault(error)) from None


class SavedView(BaseModel):
    """A view with the interventions that were active.

    Attributes:
        view: what is shown.
        interventions: what was done, in this order.
        graphs: what was drawn, one graph for each circuit, for other tools: `networkx.node_link_graph` reads them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["mnemo view 1"] = "mnemo view 1"
    view: View
    interventions: Annotated[tuple[Intervention, ...], Field(max_length=100)] = ()
    graphs: Annotated[tuple[dict[str, Any], ...], Field(max_length=10)] = ()

    @classmethod
    def parse(cls, text: str) -> SavedView:
        """Read a saved view.

        Raises:
            InputError: too long, not JSON, or not a view: with the place of the first mistake.
        """
        if len(text) > MAX_CHARACTERS:
            raise InputError(f"a saved view has at most {MAX_CHARACTERS} characters, this text has {len(text)}")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InputError(f"not a saved view ({first_fault(error)}): save it again from the explorer") from None


def drawn_graph(scene: dict[str, Any]) -> dict[str, Any]:
    """Return what a scene draws as node-link data: nodes and edges with value (logits) and share (of the effect)."""
    nodes = [{key: node[key] for key in ("id", "token", "value", "share")} for node in scene["nodes"]]
    edges = [
        {"source": edge["from"], "target": edge["to"], "value": edge["value"], "share": edge["share"]}
        for edge in scene["edges"]
    ]
    about = {"fact": scene["fact"], "title": scene["title"], "total": scene["total"]}
    return {"directed": True, "multigraph": False, "graph": about, "nodes": nodes, "edges": edges}


def first_fault(error: ValidationError) -> str:
    """Return what is wrong with a value and where, in one line."""
    fault = error.errors(include_input=False, include_url=False)[0]
    place = " ".join(visible(".".join(map(str, fault["loc"]))).split())  # a key may be any text
    return f"{place}: {fault['msg']}" if place else str(fault["msg"])
