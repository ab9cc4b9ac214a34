"""Measurements. Their records lie in ``results/``; timing is never a test."""
