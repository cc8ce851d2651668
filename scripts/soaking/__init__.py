"""Faults under load, from a seed or at every failpoint, and what must hold after each of them."""
