"""lazyfs: model weights from object storage, mounted read-only and read by byte ranges.

The rooms of the house, top to bottom (a room imports only rooms above it; a test holds the order):
errors, objects, config; stores; cache; reading; filesystem; models; service; cli.
"""

__version__ = "0.1.0"
