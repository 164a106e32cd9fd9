"""How good the lists are: a log replayed event by event, tested before it is learnt."""
