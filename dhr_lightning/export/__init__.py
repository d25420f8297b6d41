"""Hand finished predictions to others, in the form that each asks for."""
