"""A model in C as a folder: the files beside its sources that say what is in them."""

MANIFEST, COST = "sites.json", "cost.json"
# Of the manifest: raised when a reader needs what earlier writers did not write.
SCHEMA = 2
