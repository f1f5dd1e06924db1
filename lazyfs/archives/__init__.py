"""Archives as directories: which objects may be one, what is in it, and the bytes of its members."""
