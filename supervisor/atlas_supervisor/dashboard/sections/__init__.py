"""The sections of the page: each a module with `NEEDS` and a pure `view`, and a template.

`NEEDS` maps the requests whose answers it uses to how old they may be, in seconds. `view` makes
what the template shows, of the answers to those alone: as long as a view stays equal, its section
is not rendered and not sent again. So it holds moments, and the template's filters make ages of
them.
"""
