"""The click model: trained, measured and exported."""
