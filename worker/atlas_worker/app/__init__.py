"""The bundled worker: real and small, and an example of an application that uses the kit."""
