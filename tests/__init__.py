"""The tests of lazyfs."""
