"""Evaluation of the model family: splits, full ranking, metrics, intervals, reports."""
