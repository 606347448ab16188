"""Made pictures: recoloured photos and repainted scenes, for training with words."""
