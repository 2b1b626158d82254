"""Results that people look at: one page, tables for papers, a sheet of the images that leak.

What comes in: lines of results (`featx.evaluate.table`), caches for the images in them, charts of
`featx.plot`. What goes out: an HTML page that needs no network, tables in Markdown, LaTeX, CSV and
HTML. It computes no accuracy of its own. It must not know the command line.
"""
