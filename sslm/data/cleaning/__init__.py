"""Raw text to documents worth learning from: steps that edit and drop, one idea each, and how they are run."""
