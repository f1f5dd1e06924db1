"""What a reader will want next. Pure machines without I/O or clock, which do not know where chunks are."""
