"""The peers, each a script that is run in its own environment and prints one line of JSON."""
