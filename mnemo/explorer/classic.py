"""The explorer with ipywidgets' own controls and matplotlib, for where anywidget cannot be loaded."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets

from mnemo.explorer.session import Session


def classic_explorer(session: Session) -> widgets.VBox:
    """Show a session with dropdowns and sliders: choose a fact and a node, ablate or swap, see the answers.

    Args:
        session: what to show; it may be used from Python at the same time.
    """
    state = session.state()
    labels = {f"{f['cue']} → {f['answer']} ({f['verdict']})": f["fact_id"] for f in state["facts"]}
    fact = widgets.Dropdown(options=labels or [session.view.fact], value=session.view.fact, description="fact")
    least = widgets.FloatLogSlider(
        value=session.view.least_share, min=-4, max=-0.3, description="least share", continuous_update=False
    )
    node = widgets.Dropdown(options=_nodes(state), description="node")
    ablate = widgets.Button(description="ablate", disabled=session.bench is None)
    concept = widgets.Combobox(options=state["concepts"], placeholder="another concept", description="concept")
    swap = widgets.Button(description="swap concept", disabled=session.bench is None)
    undo = widgets.Button(description="undo", disabled=session.bench is None)
    message, shown, answers = widgets.Label(), widgets.Image(format="png"), widgets.Image(format="png")

    def draw() -> None:
        now = session.state()
        message.value = now["error"] or "; ".join(now["log"]) or "no interventions"
        chosen = node.value
        node.options = _nodes(now)
        node.value = chosen if chosen in node.options else node.options[0]
        shown.value = _png(_circuit(now["scenes"][0]))
        answers.value = _png(_answers(now["outcome"])) if now["outcome"] else b""

    def on(action: str, **arguments: Any) -> None:
        session.do({"do": action, **arguments})
        draw()

    fact.observe(lambda change: on("fact", fact=change["new"]), names="value")
    least.observe(lambda change: on("show", least_share=change["new"]), names="value")
    ablate.on_click(lambda _: on("ablate", node=node.value))
    swap.on_click(lambda _: on("swap", concept=concept.value))
    undo.on_click(lambda _: on("undo"))
    draw()
    controls = [widgets.HBox([fact, least]), widgets.HBox([node, ablate]), widgets.HBox([concept, swap, undo])]
    return widgets.VBox([*controls, message, widgets.HBox([shown, answers])])


def _nodes(state: dict[str, Any]) -> list[str]:
    nodes = sorted(state["scenes"][0]["nodes"], key=lambda node: -abs(node["value"]))
    return [node["id"] for node in nodes if not node["id"].startswith("logits")]


def _circuit(scene: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    from mnemo.plot import OPPOSES, SUPPORTS

    figure = Figure(figsize=(scene["width"] / 90, scene["height"] / 90), layout="constrained")
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
        ax.scatter(*at[node["id"]], s=4 * node["r"] ** 2, color=colour, marker=marker, zorder=2)
    ax.set_xticks([token["x"] for token in scene["tokens"]], [token["text"] for token in scene["tokens"]])
    ax.set_yticks([-layer["y"] for layer in scene["layers"]], [layer["text"] for layer in scene["layers"]])
    ax.set_title(f"{scene['title']} ({scene['total']:+.2f} logits)", fontsize=10)
    ax.set_xlabel("prompt token (size: share of the effect; dashed: opposes)")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    return figure


def _answers(outcome: dict[str, Any]) -> Any:
    from matplotlib.figure import Figure

    from mnemo.plot import CONTROL, EFFECT, SUFFICIENT

    figure = Figure(figsize=(4, 0.8 + 0.4 * len(outcome["answers"])), layout="constrained")
    ax = figure.subplots()
    rows = (("before", SUFFICIENT, ".."), ("after", EFFECT, None), ("control", CONTROL, "//"))
    for k, (name, colour, hatch) in enumerate(rows):
        places = [i + 0.27 * (k - 1) for i in range(len(outcome["answers"]))]
        ax.barh(places, outcome[name], 0.25, label=name, color=colour, hatch=hatch, edgecolor="white")
    ax.set_yticks(range(len(outcome["answers"])), outcome["answers"])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability (control: random directions)")
    ax.legend(fontsize=8, frameon=False)
    return figure


def _png(figure: Any) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
