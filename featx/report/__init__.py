"""Results that people look at: one page, and tables for papers.

What comes in: lines of results (`featx.evaluate.table`), caches for the images in them, charts of
`featx.plot`. What goes out: an HTML page that needs no network, tables in Markdown, LaTeX, CSV and
HTML. It computes no accuracy of its own. It must not know the command line.
"""
