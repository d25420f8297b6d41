"""IRNet: boundaries that class activation maps do not cross."""
