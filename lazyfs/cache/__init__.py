"""Where bytes are kept: chunks in memory, object files on disk, an index in LMDB, flights between them. Knows no S3."""
