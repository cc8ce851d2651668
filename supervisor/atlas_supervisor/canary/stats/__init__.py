"""The statistics of feature canaries, pure: counts go in, evidence and verdicts come out.

`docs/canary.md` tells what is computed, with the sources of the formulas.
"""
