"""Reads the daemon's log and its workers' output, from the end and as they grow.

`log_service` serves the API, `log_reader` filters lines for one client, `rotation` presents rotated
files as one log, `lines` splits bytes into lines.
"""
