"""The control API: one module of routes for each noun, one table of all routes."""
