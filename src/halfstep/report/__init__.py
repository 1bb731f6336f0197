"""What a run found, for people: the table at its end."""
