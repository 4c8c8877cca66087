"""What a user writes becomes a Study, and each of its arms a config of the matched size."""
