"""Images in millimetres: `Volume`, geometry arithmetic, readers, writers, phantoms."""
