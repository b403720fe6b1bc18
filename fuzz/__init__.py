"""Hostile and broken input for every reader: seeds made by code, mutators that know the format, limited children."""
