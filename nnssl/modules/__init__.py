"""Components shared by at least two methods: heads, decoders, losses, the teacher."""
