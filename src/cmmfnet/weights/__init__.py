"""Model files: saving, strict loading, known and bundled models."""
