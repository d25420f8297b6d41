"""Images -> unsupervised dense features."""
