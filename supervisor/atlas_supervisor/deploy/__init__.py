"""A deploy from request to end: the table, its runner, recovery and guard."""
