"""Methods that find the range of a site from data: one published method per file.

All are streaming, mergeable and of bounded memory (`base`); their names are in `halfstep.catalog`.
"""
