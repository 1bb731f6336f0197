"""Programs written as the files that runtimes read."""
