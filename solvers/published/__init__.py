"""The same methods with the coefficients of published codes, and the order these really have."""
