"""The networks: sparse encoder, token assembler and UNETR decoder put together; presets.

Construction by name.
"""
