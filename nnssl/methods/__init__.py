"""One page a method, and the table that names them all."""
