"""CMMF-Net: network, cross-modal interaction, regions of words, training method."""
