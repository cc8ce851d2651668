"""The kit: what makes any server a good worker, on the standard library alone.

Only the adapters (`aiohttp`) import a server, and nothing else here imports them: an
application gets the kit without getting the daemon's dependencies.
"""
