"""The edge of recstream: Kafka, Faust, Prometheus, settings, wall time and the command line."""
