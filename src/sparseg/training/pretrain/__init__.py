"""Self-supervised pre-training: images without labels, crops, masked autoencoder, a run folder."""
