"""What is known of the engines: which there are, how they are, what they have to do and hold."""
