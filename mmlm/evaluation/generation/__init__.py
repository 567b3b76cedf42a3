"""Writing captions: how to decode, rules for the next token, beams, samples, and the order of several captions."""
