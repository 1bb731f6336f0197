"""The captured model: its operations, the plan for them, and the quantizers on its values."""
