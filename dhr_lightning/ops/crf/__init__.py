"""Dense conditional random field on a permutohedral lattice, or by pydensecrf."""
