"""AdvCAM: class activation maps of images that climb the score of their class."""
