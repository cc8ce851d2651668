"""Feature canaries: what workers tell of their calls, and what follows from it."""
