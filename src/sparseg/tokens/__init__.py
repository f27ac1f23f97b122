"""The method, one file per word of the paper: embed, score, select, prune, assemble."""
