"""The kit for ASGI applications.

`python -m atlas_worker.asgi module:app` serves with uvicorn and drains correctly. For another
server there is `DrainMiddleware` around the application; it needs nothing but this package.
"""

from atlas_worker.asgi.middleware import DrainMiddleware

__all__ = ["DrainMiddleware"]
