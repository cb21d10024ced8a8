"""The explorer with ipywidgets' own controls and matplotlib, for where anywidget cannot be loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ipywidgets as widgets

from mnemo.explorer.session import Session

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NOTHING = "nothing"


class ClassicExplorer(widgets.VBox):
    """A session behind dropdowns, sliders and buttons; `session` may be used from Python at the same time.

    Facts are searched and filtered, a node or a path is chosen and ablated or patched, the concept is swapped; the
    circuit and the answers before, after and under the control are drawn by matplotlib.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._facts = session.catalog()["facts"]
        live = session.study is not None
        self._updating, self._drawn = False, None
        view = session.view
        self.search = widgets.Text(placeholder="cue, answer or concept", description="search")
        verdicts = list(dict.fromkeys(fact["verdict"] for fact in self._facts))
        self.verdict = widgets.Dropdown(options=["any", *verdicts], description="verdict")
        self.score = widgets.FloatSlider(min=0, max=1, step=0.05, description="score ≥", continuous_update=False)
        self.fact = widgets.Dropdown(description="fact")
        self.least_share = widgets.FloatLogSlider(
            value=max(view.least_share, 1e-4), min=-4, max=-0.3, description="least share", continuous_update=False
        )
        self.top = widgets.IntSlider(value=view.top, min=1, max=50, description="paths", continuous_update=False)
        self.group = widgets.Dropdown(options=["head", "layer"], value=view.group, description="group by")
        self.part = widgets.Dropdown(description="selection")
        self.cue = widgets.Text(placeholder="cue of another fact", description="from")
        self.concept = widgets.Combobox(
            options=session.catalog()["concepts"], placeholder="another concept", description="concept"
        )
        self.ablate, self.patch, self.swap, self.undo, self.clear = (
            widgets.Button(description=name, disabled=not live)
            for name in ("ablate", "patch", "swap concept", "undo", "clear")
        )
        self.message, self.reading = widgets.Label(), widgets.Label()
        self.circuit, self.answers = widgets.Image(format="png"), widgets.Image(format="png")
        super().__init__(
            [
                widgets.HBox([self.search, self.verdict, self.score]),
                widgets.HBox([self.fact, self.least_share, self.top, self.group]),
                widgets.HBox([self.part, self.ablate, self.cue, self.patch]),
                widgets.HBox([self.concept, self.swap, self.undo, self.clear]),
                self.message,
                self.reading,
                widgets.HBox([self.circuit, self.answers]),
            ]
        )
        self._connect()
        self.refresh()

    def refresh(self) -> None:
        """Draw the session as it is now."""
        state, scene = self.session.state(), self.session.scenes[0]
        self._updating = True
        self._offer_facts()
        nodes = sorted(scene["nodes"], key=lambda node: -abs(node["value"]))
        paths = [(f"path {i + 1}: {path['text']}", f"path {i + 1}") for i, path in enumerate(scene["paths"])]
        self.part.options = [(_NOTHING, None), *((node["id"], node["id"]) for node in nodes), *paths]
        selected = self.session.view.selected
        self.part.value = selected if selected in [value for _, value in self.part.options] else None
        self._updating = False
        self.message.value = state["error"] or "; ".join(state["log"]) or "no interventions"
        self.reading.value = _in_words(state["detail"])
        if scene is not self._drawn:
            self._drawn, self.circuit.value = scene, _png(_circuit(scene))
        outcome = state["outcomes"][0] if state["outcomes"] else None
        self.answers.value = _png(_answers(outcome)) if outcome else b""

    def _connect(self) -> None:
        for control in (self.search, self.verdict, self.score):
            control.observe(lambda _: self._offer_facts(), names="value")
        self.fact.observe(lambda change: self._do("fact", fact=change["new"]), names="value")
        for name in ("least_share", "top", "group"):
            getattr(self, name).observe(
                lambda change, name=name: self._do("show", **{name: change["new"]}), names="value"
            )
        self.part.observe(lambda change: self._do("select", what=change["new"]), names="value")
        self.ablate.on_click(lambda _: self._do("ablate", part=self._part()))
        self.patch.on_click(lambda _: self._do("patch", part=self._part(), cue=self.cue.value))
        self.swap.on_click(lambda _: self._do("swap", concept=self.concept.value))
        self.undo.on_click(lambda _: self._do("undo"))
        self.clear.on_click(lambda _: self._do("clear"))

    def _do(self, action: str, **arguments: Any) -> None:
        if not self._updating:
            self.session.do({"do": action, **arguments})
            self.refresh()

    def _part(self) -> str:
        """The selection by the name that interventions know it under."""
        return self.session.detail.get("part", "")

    def _offer_facts(self) -> None:
        """List the facts that the search finds, and the one shown whether it does or not."""
        words, shown = self.search.value.lower(), self.session.view.fact
        found = [
            fact
            for fact in self._facts
            if fact["fact_id"] == shown
            or (
                self.verdict.value in ("any", fact["verdict"])
                and (fact["score"] or 0) >= self.score.value
                and words in f"{fact['cue']} {fact['answer']} {fact.get('concept') or ''}".lower()
            )
        ]
        before, self._updating = self._updating, True
        labels = [(f"{f['cue']} → {f['answer']} ({f['verdict']})", f["fact_id"]) for f in found]
        self.fact.options = labels or [(shown, shown)]
        self.fact.value = shown
        self._updating = before


def _in_words(detail: dict[str, Any]) -> str:
    if not detail:
        return "select a node or a path"
    said = [f"{detail['title']}: {detail['value']:+.2f} logits, {detail['share']:.1%} of the effect"]
    if detail.get("concepts"):
        said.append("reads as " + ", ".join(f"{c['phrase']} ({c['ratio']:.1f})" for c in detail["concepts"][:3]))
    if detail.get("attention"):
        strongest = sorted(detail["attention"], key=lambda row: -row["weight"])[:3]
        said.append("attends to " + ", ".join(f"{row['token']} ({row['weight']:.0%})" for row in strongest))
    return "; ".join(said)


def _circuit(scene: dict[str, Any]) -> Figure:
    from mnemo.plot.style import OPPOSES, SUPPORTS, new_figure

    figure = new_figure(max(5, scene["width"] / 90), scene["height"] / 90 + 0.6)
    ax = figure.subplots()
    at = {node["id"]: (node["x"], -node["y"]) for node in scene["nodes"]}
    for edge in scene["edges"]:
        (x0, y0), (x1, y1) = at[edge["from"]], at[edge["to"]]
        style = ("-", SUPPORTS) if edge["value"] >= 0 else ("--", OPPOSES)
        width = 6 * min(1, abs(edge["share"])) ** 0.5
        ax.plot([x0, x1], [y0, y1], linestyle=style[0], color=style[1], alpha=0.4, linewidth=width, zorder=1)
    for node in scene["nodes"]:
        colour = SUPPORTS if node["value"] >= 0 else OPPOSES
        marker = "s" if node["id"].startswith("MLP") else "o"
        last = node["id"].startswith("logits")
        ax.scatter(*at[node["id"]], s=(1.5 * node["r"]) ** 2, color=colour, marker=marker, zorder=2)
        below = (0, 17 if last else -0.85 * node["r"] - 6)
        text = _plain(scene["answer"]) if last else node["label"]
        size = 11 if last else 6
        ax.annotate(text, at[node["id"]], below, textcoords="offset points", ha="center", va="center", fontsize=size)
    if scene["waypoint"]:
        x, y, text = scene["waypoint"]["x"], -scene["waypoint"]["y"], scene["waypoint"]["text"]
        box = {"boxstyle": "round", "facecolor": "#00735a", "edgecolor": "none"}
        ax.text(x, y, _plain(text), color="white", bbox=box, ha="center", va="center", fontsize=8, zorder=3)
    ax.set_xticks([t["x"] for t in scene["tokens"]], [_plain(t["text"]) for t in scene["tokens"]])
    ax.set_yticks([-(b["y"] + b["height"] / 2) for b in scene["bands"]], [b["text"] for b in scene["bands"]])
    ax.set_title(_plain(f"{scene['title']} ({scene['total']:+.2f} logits)"), fontsize=10)
    ax.set_xlabel("prompt token (circle: head, square: MLP, size: share of the effect; dashed: opposes)", fontsize=8)
    ax.set_xlim(0, scene["width"])
    ax.margins(y=0.08)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _answers(outcome: dict[str, Any]) -> Figure:
    from mnemo.plot.style import CONTROL, EFFECT, SUFFICIENT, new_figure

    figure = new_figure(4, 1.6 + 0.4 * len(outcome["answers"]))
    ax = figure.subplots()
    rows = (("before", SUFFICIENT, ".."), ("after", EFFECT, None), ("control", CONTROL, "//"))
    for k, (name, colour, hatch) in enumerate(rows):
        places = [i + 0.27 * (k - 1) for i in range(len(outcome["answers"]))]
        ax.barh(places, outcome[name], 0.25, label=name, color=colour, hatch=hatch, edgecolor="white")
    ax.set_yticks(range(len(outcome["answers"])), [_plain(answer) for answer in outcome["answers"]])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability (control: random directions)")
    predicted = f", predicted {outcome['predicted']}" if outcome["predicted"] else ""
    ax.set_title(_plain(f"says {outcome['says']}{predicted}"), fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _plain(text: str) -> str:
    """Text as matplotlib shows it, which would take what stands between dollars for a formula."""
    return text.replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
