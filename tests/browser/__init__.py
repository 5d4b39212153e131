"""A real browser for tests, and the accessibility checker that runs in it."""
