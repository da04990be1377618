"""From a trained folder to a model that anyone loads: bundle, clean-process check, card, upload."""
