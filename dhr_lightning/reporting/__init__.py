"""Parts of the report: ground truth, evaluation, figures, pictures and the page."""
