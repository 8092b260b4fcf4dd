"""The embedded default: small real data and small models trained on the spot, so that the whole path can be watched."""
