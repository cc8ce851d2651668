"""The nouns of the project: frozen, without I/O, shared by every layer above."""
