"""All folds of a dataset: trained, every case predicted by the model that did not see it, one table."""
