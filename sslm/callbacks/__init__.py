"""One idea per file: what a person sees, when to validate, when to save, when to stop."""
