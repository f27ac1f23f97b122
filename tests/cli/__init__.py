"""Tests of the commands, most of them in this process."""
