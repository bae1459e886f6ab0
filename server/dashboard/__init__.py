"""The dashboard: pages for a browser, over the same REST API that the command line uses.

Plain ES modules, no build step. `static/` is served as it lies there; what others wrote is in `static/vendor/`, each with its licence.
"""
