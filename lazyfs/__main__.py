"""`python -m lazyfs`: the same command as `lazyfs`, for places where no script is on the PATH."""

from lazyfs.cli.main import main

if __name__ == "__main__":
    main()
