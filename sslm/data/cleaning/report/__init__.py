"""The report of a clean: what is in the corpus, and what was dropped, as one page and as Markdown."""
