"""How facts are learned: what a concept is worth, when a route through one appears, whether updates agree."""
