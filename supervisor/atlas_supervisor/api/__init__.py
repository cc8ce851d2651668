"""The control API: one file per noun, over one table of routes."""
