"""Layouts as found, one file each: `recognise(path)` tells, `read(path, declaration)` lists the cases."""
