"""The bundled worker: a small, working application, and an example of the kit's use."""
