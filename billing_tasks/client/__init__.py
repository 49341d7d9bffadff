"""Doors for gateways: Bookkeeper, AsyncBookkeeper, and what runs beside them."""
