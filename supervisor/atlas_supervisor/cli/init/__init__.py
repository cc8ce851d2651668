"""`atlasctl init`: settings and a smoke test for the application in a folder.

A command that is written down there (a Procfile) comes first, then what the source shows, then a
Dockerfile. Nothing of the application is imported or run: its files are read, and Python is parsed.
"""
