"""One file a target: its table of rules, measured on the runtime that the constraints pin."""
