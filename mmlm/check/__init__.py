"""The conformance kit: whether a part keeps the rules of its slot, tried at tiny sizes in seconds."""
