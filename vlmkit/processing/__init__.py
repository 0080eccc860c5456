"""Files and words in, a row of tokens out."""
