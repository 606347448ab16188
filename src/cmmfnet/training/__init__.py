"""Training a method: recipe, run folder, loop, checkpoints, distillation."""
