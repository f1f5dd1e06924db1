"""One running mount: composition, signals, readiness, what it reports. Knows every room, and no room's inside."""
