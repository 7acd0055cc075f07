"""What a lab adds to rlexp in a package of its own."""
