"""Figures that a notebook shows whether or not somebody imported pyplot."""

from __future__ import annotations

from io import BytesIO

from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure that belongs to no window.

    IPython draws figures once pyplot has been imported, and until then prints what they are called.
    """

    def _repr_png_(self) -> bytes:
        png = BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()
