"""Independent, slow and obvious implementations to test against."""
