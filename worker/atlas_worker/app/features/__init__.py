"""The features: each is a small pure function of the posted input.

Each has a stable and a canary implementation, which give the same answers in different ways.
"""
