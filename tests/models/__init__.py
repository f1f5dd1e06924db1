"""Models by name and version: published, listed, had as plain files; against Swift and moto, with real processes."""
