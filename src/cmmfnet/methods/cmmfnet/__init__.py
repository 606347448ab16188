"""CMMF-Net: the network (network.py), image encoder and CI block (interaction.py), training and
losses (method.py); beyond the paper, regions of words (regions.py). docs/architecture.md has the
paper's sections and equations with the code of each."""
