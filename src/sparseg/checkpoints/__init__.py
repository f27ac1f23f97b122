"""A model is a folder: `weights.safetensors` and `model.json`. Adapters read other people's checkpoints."""
