"""Questions asked of a worker before and while it serves."""
