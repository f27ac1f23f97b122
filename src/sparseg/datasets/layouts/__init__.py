"""Layouts as found, one file each: `recognise(path)` tells, `read(path, declaration)` lists the cases.

Each has a `NAME`, and in `NEEDS` the few words that tell a user what it looks like. Reading lists files and
JSON or tables only and opens no image. What single cases lack becomes `Dataset.problems`.
"""
