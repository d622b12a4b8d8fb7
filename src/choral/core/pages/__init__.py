"""HTML pages: Jinja2 templates with autoescape, one style sheet in light and dark, and the frame that every page shares.

In: titles, texts, JSON for scripts, templates of other packages that extend `base.html` or `page.html`. Out: the text of a
page. `page.py` renders the self-contained pages (`choral analyze`, the summary of `choral run`), which load nothing and run
no script but their own; `templates.py` renders any template of the package, such as those of the HTTP service. Open
`page.py` first.
"""
