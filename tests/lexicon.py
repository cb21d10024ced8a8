"""A few real phrases for worlds that tests make."""

PHRASES = tuple(
    line.strip()
    for line in """
    value added tax
    central processing unit
    gross domestic product
    frequently asked questions
    automated teller machine
    leg before wicket
    world health organization
    visual flight rules
    chief executive officer
    random access memory
    graphical user interface
    printed circuit board
    light emitting diode
    joint photographic experts
    point of sale
    request for quotation
    """.strip().splitlines()
)
