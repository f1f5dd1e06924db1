"""Models as things with a name and a version: published whole, found by name, had as plain files. Knows no FUSE, and no
mount."""
