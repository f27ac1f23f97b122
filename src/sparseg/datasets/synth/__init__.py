"""Synthetic subjects from one labelled volume: `subject.make_subject` is the page to read first."""
