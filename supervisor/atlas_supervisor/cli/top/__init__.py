"""`atlasctl top`: the dashboard in the terminal.

`watch` keeps the daemon's latest answers, `headline` and `panes` turn them into text by the other
verbs' renderers, `actions` runs the other verbs themselves. These know nothing of Textual, which is
the optional extra `tui`: only `app` and `dialogs` import it, and only the verb imports those.
"""
