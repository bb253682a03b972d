"""The only training loop; it knows the contract, not the methods."""
