"""Small models trained, or built by hand, so that the route of each fact is known."""
