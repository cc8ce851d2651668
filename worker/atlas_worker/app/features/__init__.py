"""The features: small, and true about their input. Each is a pure function of what was posted.

Each has a stable and a canary implementation, which give the same answers in different ways.
"""
