"""One idea per file: what a person sees, when to validate, save, stop, go back, and give up."""
