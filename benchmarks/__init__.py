"""Scripts that measure: the figures of the documents, one command each."""
