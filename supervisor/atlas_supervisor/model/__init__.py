"""The data types that every layer shares: frozen, without I/O."""
