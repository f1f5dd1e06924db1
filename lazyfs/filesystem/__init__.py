"""What the kernel sees: names, open files, and the translation between pyfuse3 and them. Knows no S3, LMDB or disk."""
