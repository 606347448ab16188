"""Network parts in plain PyTorch: blocks, transformer, discriminator, losses."""
