"""The captured model: its operations, what is planned for them, and the quantizers on its values."""
