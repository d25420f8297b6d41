"""One evaluation of masks: counts, scores, and what they are compared with."""
