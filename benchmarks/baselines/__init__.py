"""What recstream is measured against; each module is a program that reads the inputs and answers every event."""
