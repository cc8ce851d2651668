"""The dashboard at `/` of the control API.

It knows the API's answers alone: `answers` holds what the endpoints answer, each section makes its
view of them (pure, a dict), and `page` renders views with Jinja2. `api.dashboard` asks, serves,
and takes the forms. Nothing here is imported before a page is opened.
"""
