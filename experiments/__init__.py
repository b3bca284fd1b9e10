"""Experiments: which trainings answer a question, running them, and what their results say."""
