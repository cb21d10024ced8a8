"""The one-page report of a study: what was asked, what was found, against which controls, what could still be wrong.

Everything that the page says is computed here, once, and put into two templates (HTML and Markdown). No text of a task,
a fact or a model reaches a page unescaped. A page holds no date and no duration: one seed gives one page.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mnemo.doses import dose_curves, title_of
from mnemo.errors import MnemoError
from mnemo.files import replacing, write_text
from mnemo.invented import THROUGH_A_CONCEPT, as_marked, count_invented, mark_invented, strongest_first
from mnemo.messages import messages_beside_state
from mnemo.plot import dose_figure, swap_by_fact, verdict_overview
from mnemo.plot.style import new_figure
from mnemo.verdict import swaps_in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mnemo.study import Study

LISTED, SHOWN = 10, 5  # mnemonics listed as invented, and facts shown with their paths and messages
MESSAGES = 3  # of each of those, the strongest
TIERS = {
    "mnemonic": "swapping the concept moves the answer as predicted, and the second hop is that of the concept's own "
    "prompt",
    "shared-intermediate": "swapping moves the answer as predicted, but the second hop is the fact's own",
    "rote": "moving the concept that was read moves nothing",
    "unsure": "the evidence disagrees, or could not be had",
    "not-recalled": "the model does not give the answer, so nothing was judged",
}
# What was done, its control, and what the control would show if the effect were none of the concept's.
CONTROLS = (
    ("swap gives the answer predicted beforehand", "swap_success", "random direction of the same norm",
     "swap_control", "any push of that size would do"),
    ("a closer look, at the clearest of its doses", "dosed_swap", "random direction of the same norm",
     "dosed_control", "any push of that size would do"),
    ("mean state plus concept gives the answer: P", "sufficiency", "mean state plus other concepts",
     "sufficiency_control", "the rest of the prompt gives the answer away"),
    ("concept removed: P(answer) lost", "ablation_drop", "random vector of that norm removed", "ablation_control",
     "any damage of that size would do"),
    ("other questions about the cue get the concept's answers", "entailment",
     "answers of other concepts that share the fact's answer", "entailment_control",
     "the concept was read because it shares the answer, not because the cue stands for it"),
    ("concept taught a new answer: the fact follows", "edit_follows",
     "the fact gives an answer that no concept with its own was taught", "edit_control",
     "the training spoils whatever is there"),
)  # fmt: skip


class _Markdown(str):
    """Text that is Markdown already."""


@dataclass(frozen=True)
class Picture:
    """A figure of the page: the name of its file, what it shows, and the PNG itself."""

    name: str
    caption: str
    png: bytes

    @property
    def link(self) -> str:
        return _Markdown(f"figures/{self.name}.png")

    @property
    def inline(self) -> str:
        return f"data:image/png;base64,{base64.b64encode(self.png).decode()}"


def write_report(study: Study, folder: Path, *, truth: pd.DataFrame | None = None) -> None:
    """Write report.html (one file, figures inside), report.md and figures/ into `folder`.

    Args:
        study: what was found.
        folder: where to.
        truth: what the facts were trained to be, as `mnemo.scoring.read_truth` gives it; None where nobody knows.

    Raises:
        InputError: the folder cannot be written.
    """
    page = summarise(study, truth=truth)
    with replacing(folder / "figures") as draft:
        draft.mkdir()
        for picture in page["pictures"]:
            (draft / f"{picture.name}.png").write_bytes(picture.png)
    for name in ("report.html", "report.md"):
        write_text(folder / name, _render(name, page))


def summarise(study: Study, *, truth: pd.DataFrame | None = None) -> dict[str, Any]:
    """Return what the templates are filled with: plain values, tables as lists of rows, and the pictures."""
    table = study.table
    kinds = None
    if truth is not None:
        kinds = table[["fact_id"]].merge(truth[["fact_id", "kind"]], on="fact_id", how="left")["kind"]
        table = table.assign(invented=mark_invented(table, (kinds == "free").to_numpy()))
    recalled = table[table["recalled"].astype(bool)]
    through = recalled[recalled["verdict"].isin(THROUGH_A_CONCEPT)]
    free = recalled if kinds is None else recalled[(kinds == "free").to_numpy()[recalled.index]]
    marked = strongest_first(table)
    clearest = _clearest_first(through) if "concept_score" in through else through.head(0)
    messages, unread = _message_rows(study, clearest.head(SHOWN))
    return {
        "task": study.task,
        "record": study.record,
        "facts": len(table),
        "recalled": len(recalled),
        "through": len(through),
        "site": study.waypoint.site if study.waypoint else None,
        "site_token": _site_token(study),
        "verdicts": _verdict_rows(table),
        "controls": _control_rows(table),
        "invented": count_invented(free, seed=int(study.record["seed"])) if "evoked_answer" in table else None,
        "marks": marked["invented"].value_counts().to_dict(),
        "edited": "edit_q" in table,
        "examples": _example_rows(marked, LISTED),
        "clearest": _example_rows(clearest, SHOWN),
        "messages": messages,
        "kinds": _kind_rows(table, kinds),
        "truth_known": truth is not None,
        "notes": [*study.notes, *unread],
        "doubts": _doubts(study, through),
        "pictures": _pictures(study, through, kinds),
    }


def _site_token(study: Study) -> str | None:
    """The token at the waypoint, where it is one and the same for all facts; else how far it is from the end."""
    if study.waypoint is None:
        return None
    judged = study.table[study.table["recalled"].astype(bool)]
    position = study.waypoint.site.position
    tokens = {study.model.tokens.pieces(study.prompt(i).tokens)[position].strip() for i in judged["fact_id"][:64]}
    return tokens.pop() if len(tokens) == 1 else None


def _verdict_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    counts = table["verdict"].value_counts()
    return [
        {
            "verdict": tier,
            "meaning": meaning,
            "facts": int(counts.get(tier, 0)),
            "share": counts.get(tier, 0) / len(table),
            "swap": _middle(table[table["verdict"] == tier], "swap_success"),
            "control": _middle(table[table["verdict"] == tier], "swap_control"),
        }
        for tier, meaning in TIERS.items()
        if counts.get(tier, 0)
    ]


def _control_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Each measure beside its control: medians over the facts recalled through a concept and over the others."""
    through = table["verdict"].isin(THROUGH_A_CONCEPT)
    rest = ~through & table["recalled"].astype(bool)
    return [
        {
            "done": done,
            "control": control,
            "would_mean": would_mean,
            "through": (_middle(table[through], effect), _middle(table[through], against)),
            "rest": (_middle(table[rest], effect), _middle(table[rest], against)),
        }
        for done, effect, control, against, would_mean in CONTROLS
        if effect in table and table[effect].notna().any()
    ]


def _kind_rows(table: pd.DataFrame, kinds: pd.Series | None) -> list[dict[str, Any]]:
    if kinds is None:
        return []
    counts = pd.crosstab(kinds.to_numpy(), table["verdict"].to_numpy())
    return [
        {"kind": kind, "verdicts": {tier: int(row.get(tier, 0)) for tier in TIERS if tier in counts}}
        for kind, row in counts.iterrows()
    ]


def _clearest_first(facts: pd.DataFrame) -> pd.DataFrame:
    return facts.sort_values(["score", "concept_score"], ascending=False, kind="stable")


def _example_rows(facts: pd.DataFrame, most: int) -> list[dict[str, Any]]:
    columns = (
        "cue", "answer", "concept", "verdict", "invented", "score", "q_value",
        "entailment", "entailment_control", "edit_share", "edit_rival", "top_path", "top_path_share",
    )  # fmt: skip
    return [
        {**{name: _plain(row.get(name)) for name in columns}, "swaps": swaps_in_words(row)}
        for row in (as_marked(row) for _, row in facts.head(most).iterrows())
    ]


def _message_rows(study: Study, facts: pd.DataFrame) -> tuple[list[dict[str, Any]], list[str]]:
    """What the strongest writers into the waypoint carry of each fact, after its whole state; or why none is read."""
    if facts.empty:
        return [], []
    try:
        found = messages_beside_state(study, list(facts["fact_id"]), strongest=MESSAGES, seed=int(study.record["seed"]))
    except MnemoError as error:
        return [], [f"nothing is said of messages to the waypoint: {error}"]
    named = found.merge(facts[["fact_id", "cue", "answer"]], on="fact_id")
    first = ~named["fact_id"].duplicated()
    rows = named.assign(first=first).to_dict("records")
    return [{str(name): _plain(value) for name, value in row.items()} for row in rows], []


def _doubts(study: Study, through: pd.DataFrame) -> list[str]:
    """What could still be wrong, the study's own weak places first."""
    doubts = []
    leaks = _middle(through, "leakage")
    if leaks is not None and leaks > 0:
        doubts.append(
            f"In the median fact recalled through a concept, {leaks:.0%} of the successful swaps also succeed straight "
            "through the unembedding: there the state may hold the answer rather than a concept."
        )
    carried = _middle(through, "top_path_share")
    if carried is not None:
        doubts.append(
            f"The strongest single path carries {carried:.0%} of the effect in the median fact: many paths act "
            "together, and top_path names the first of them, not the mechanism."
        )
    judged = study.table[study.table["verdict"].isin([*THROUGH_A_CONCEPT, "rote", "unsure"])]
    if len(judged) and (judged["verdict"] == "unsure").mean() > 0.1:
        share = (judged["verdict"] == "unsure").mean()
        doubts.append(f"{share:.0%} of the facts are unsure: counts of the other verdicts are lower bounds.")
    return [
        *doubts,
        "The place where concepts are swapped was chosen on facts that are then judged. q-values pay for that, scores "
        "and intervals do not.",
        "A concept vector carries its answer with it. Where other questions do not follow the concept (look-alikes), a "
        "swap that works may have moved the answer alone: in organisms, half of the mnemonics or more would have "
        "passed with another concept that has their answer. Teaching the concept another answer (--edit) tells which "
        "of them it is" + (", as was done here." if "edit_follows" in judged else "; that was not done here."),
        "Rote means: not through the concept read here, at this place. A route through another concept, or around "
        "this place, is not excluded.",
        "The verdicts are about one model, one wording of the question and one set of facts. That a concept is used "
        "says nothing about whether a person would find the mnemonic natural.",
    ]


def _pictures(study: Study, through: pd.DataFrame, kinds: pd.Series | None) -> list[Picture]:
    """The figures that this study has the evidence for."""
    table, found = study.table, []
    if table["score"].notna().any():
        figure = new_figure(7.0, 3.2)
        verdict_overview(table, kinds=None if kinds is None else list(kinds), ax=figure.subplots())
        caption = "Score of every fact that was judged, by verdict"
        caption += "." if kinds is None else "; colours and markers: what the organism's facts were trained to be."
        found.append(Picture("verdicts", caption, _png(figure)))
    if "swap_success" in table and table["swap_success"].notna().any():
        figure = new_figure(7.0, 3.2)
        swap_by_fact(table, ax=figure.subplots())
        caption = (
            "How often exchanging a fact's concept for another gives the answer predicted beforehand, beside random "
            "directions of the same size. An effect shows where the two part."
        )
        found.append(Picture("swaps", caption, _png(figure)))
    if len(through):
        best = _clearest_first(through).iloc[0]
        try:
            doses = dose_curves(study, best["fact_id"], seed=int(study.record["seed"]))
        except MnemoError:  # nothing to swap to; the notes say why
            return found
        title = title_of(best)
        caption = (
            f"The clearest fact, {title}, under every intervention as its dose grows; shaded: the range over the "
            "trials of swaps and of random directions. Left, the answer that the swap should give; right, the fact's "
            "own."
        )
        found.append(Picture("doses", caption, _png(dose_figure(doses, title=title))))
    return found


def _png(figure: Figure) -> bytes:
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    return drawn.getvalue()


def _middle(facts: pd.DataFrame, column: str) -> float | None:
    if column not in facts:
        return None
    values = facts[column].to_numpy(dtype=float, na_value=np.nan)
    return float(np.nanmedian(values)) if np.isfinite(values).any() else None


def _plain(value: Any) -> Any:
    return None if value is None or value != value else value


# ---- pages


def _render(name: str, page: dict[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    as_html = name.endswith(".html")
    pages = Environment(
        loader=PackageLoader("mnemo"),
        autoescape=as_html,
        finalize=None if as_html else _in_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {"number": _number, "percent": _percent, "interval": _interval}
    return pages.get_template(f"{name}.jinja").render(page)


_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&])")
_LINE_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


def _in_markdown(value: Any) -> Any:
    """Escape what Markdown, or HTML within it, takes for markup inside a line; a line break would end a cell."""
    if not isinstance(value, str) or isinstance(value, _Markdown):
        return value
    return _SPECIAL.sub(r"\\\1", _LINE_BREAKS.sub(" ", value))


def _number(value: float | None, digits: int = 2) -> str:
    return _Markdown("-" if value is None else f"{value:.{digits}f}")


def _percent(value: float | None) -> str:
    return _Markdown("-" if value is None else f"{value:.0%}")


def _interval(entry: dict[str, float | None]) -> str:
    if entry["low"] is None:
        return _percent(entry["value"])
    return _Markdown(f"{_percent(entry['value'])} [{_percent(entry['low'])}, {_percent(entry['high'])}]")
