"""Text: words, names, colours and captions, and the tokens that a network takes for them."""
