"""CMMF-Net small: a network for CPUs, distilled from CMMF-Net."""
