"""The target application of the black-box suite, on FastAPI.

Written once, with two front doors: the decorator on each handler, or the middleware round them all.
"""
