"""Tests of volumes: values and places in millimetres."""
