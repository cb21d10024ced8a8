"""The explorer as an anywidget: a session is drawn in the browser, and messages come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mnemo.explorer.session import Session

STATIC = Path(__file__).parent / "static"


class ExplorerWidget(anywidget.AnyWidget):
    """Shows a session; `session` can be used from Python at the same time, `refresh` then redraws.

    What seldom changes is sent apart from what every click changes: `catalog` once, `scenes` with the view.
    """

    _esm = STATIC / "explorer.js"
    _css = STATIC / "explorer.css"
    catalog = traitlets.Dict().tag(sync=True)
    scenes = traitlets.List().tag(sync=True)
    state = traitlets.Dict().tag(sync=True)

    def __init__(self, session: Session, **options: Any) -> None:
        self.session = session
        super().__init__(catalog=session.catalog(), scenes=session.scenes, state=session.state(), **options)
        self.on_msg(self._receive)

    def refresh(self) -> None:
        """Draw the session as it is now."""
        with self.hold_sync():
            self.scenes = self.session.scenes
            self.state = self.session.state()

    def _receive(self, _widget: Any, message: Any, _buffers: Any) -> None:
        if not isinstance(message, dict):
            message = {}
        try:
            self.session.do(message)
        finally:  # the browser waits for an answer, whatever happened
            self.refresh()
