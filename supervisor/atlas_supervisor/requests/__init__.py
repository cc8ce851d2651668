"""Users' requests by version: files of workers with the kit, live figures, and their record.

request file of a process -> count_file (checked cells) -> collector (seconds, totals of each
instance, live figures, metrics) -> record (minutes of each version, in the database)
"""
