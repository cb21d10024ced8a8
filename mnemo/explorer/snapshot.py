"""The explorer as one HTML page: everything in it, nothing loaded, no kernel."""

from __future__ import annotations

import html
import json
from importlib.resources import files
from typing import Any

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>body {{ margin: 12px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #0d1014; }} }}
{css}</style>
</head>
<body>
<div id="explorer"></div>
<script type="application/json" id="drawn">{drawn}</script>
<script type="module">
{js}
const drawn = JSON.parse(document.getElementById("drawn").textContent);
render({{ model: {{ get: (name) => drawn[name] }}, el: document.getElementById("explorer") }});
</script>
</body>
</html>
"""


def page(state: dict[str, Any], scenes: list[dict[str, Any]], *, details: dict[str, dict[str, Any]]) -> str:
    """Return a page that shows a session as it is.

    Args:
        state: as `Session.state` gives it.
        scenes: the drawings.
        details: what is known of their parts, by id; the page shows it when they are selected.
    """
    static = files("mnemo.explorer") / "static"
    kept = {**state, "live": False, "files": {}, "error": "", "said": ""}
    drawn = {"catalog": {"facts": [], "concepts": []}, "scenes": scenes, "state": kept, "details": details}
    data = json.dumps(drawn, allow_nan=False).replace("<", "\\u003c")  # no text can end the script element
    return _PAGE.format(
        title=html.escape(f"mnemo: {scenes[0]['title']}"),
        css=(static / "explorer.css").read_text(encoding="utf-8"),
        js=(static / "explorer.js").read_text(encoding="utf-8"),
        drawn=data,
    )
