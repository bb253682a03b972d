"""The only training loop; it depends on the method interface, not on individual methods."""
