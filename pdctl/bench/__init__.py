"""The open-loop benchmark client behind `pdctl bench`."""
