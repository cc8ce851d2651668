"""The daemon's log and metrics."""
