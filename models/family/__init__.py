"""Every sequence model of the field behind one interface, from a Markov chain to a Transformer."""
