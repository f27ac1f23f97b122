"""Plain network parts: attention, transformer block, 3-D position embedding."""
