"""LightningModules: wire network, loss, metric and optimiser."""
