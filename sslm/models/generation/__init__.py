"""What a trained model writes: text that goes on, and text for what is missing."""
