"""What is measured of trained adapters, item by item."""
