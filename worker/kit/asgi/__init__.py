"""The kit for ASGI applications.

`python -m worker.kit.asgi module:app` serves with uvicorn and drains correctly. Who starts another
server puts `DrainMiddleware` around the application; it needs nothing but this package.
"""

from worker.kit.asgi.middleware import DrainMiddleware

__all__ = ["DrainMiddleware"]
