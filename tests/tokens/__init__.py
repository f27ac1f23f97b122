"""The method word by word: score, select, prune, assemble."""
