"""The kit for ASGI applications.

`python -m atlas_worker.asgi module:app` serves with uvicorn and drains without losing a request.
For another server there is `DrainMiddleware`, which needs no other package.
"""

from atlas_worker.asgi.middleware import DrainMiddleware

__all__ = ["DrainMiddleware"]
