"""What recstream computes: sequence models, ranking, training and the model registry (no Kafka, no clock)."""
