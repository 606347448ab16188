"""Scores of models on pairs: protocol, metrics, intervals, comparison, report."""
