"""The statistics of feature canaries: counts go in, evidence and verdicts come out, no I/O.

`docs/canary.md` explains the methods, their guarantees and their sources.
"""
