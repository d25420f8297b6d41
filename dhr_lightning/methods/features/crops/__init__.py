"""Mean features of crops."""
