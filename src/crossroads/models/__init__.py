"""Small models shared by the families: text encoders, and where the shipped weights are."""
