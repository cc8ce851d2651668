"""Looks for what would keep a deploy from working on this machine, and changes nothing.

It is a program of its own, as the check before a reload is: `atlasctl doctor` runs it and shows its
findings. So the client imports nothing of the daemon, and the daemon's own code does the looking
(docs/adr/0079).
"""
