"""What a run leaves behind and goes on from: its folder, its checkpoints, and what surrounds a training."""
